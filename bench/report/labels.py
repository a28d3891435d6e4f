"""Labels of columns as pages and pictures print them."""

from __future__ import annotations

import re

from bench.tables.definitions import Column

_UNIT = re.compile(r" (1e-\d|K\^2|K|M|s|min)$")
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def name_of(column: Column) -> str:
    """Returns a column's label without its unit: `MSE` of `MSE 1e-3`."""
    return _UNIT.sub("", column.label)


def label_of(column: Column) -> str:
    """Returns a column's label with its unit as it is printed: `MSE, 10⁻³`; skill has none."""
    unit = _UNIT.search(column.label)
    if unit is None or column.skill_of is not None:
        return name_of(column)
    number, _, power = unit[1].partition("1e")
    text = f"10{power.translate(_SUPERSCRIPTS)}" if power else number.replace("^2", "²")
    return f"{name_of(column)}, {text}"
