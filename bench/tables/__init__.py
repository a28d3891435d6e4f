"""Tables of published figures beside measured ones: pure functions of the two, without torch."""

from bench.tables.render import load_table

__all__ = ["load_table"]
