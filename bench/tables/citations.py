"""What to cite for a table, as BibTeX."""

from __future__ import annotations

import re
from importlib.metadata import version

from bench.tables.definitions import Published


def bibliography(published: Published | None) -> str:
    """Returns BibTeX entries of earthbench and, of a table with published values, of their paper."""
    entries = [
        _entry(
            "software",
            "earthbench",
            title="earthbench: a benchmark and reproducibility harness for Earth-system forecasting",
            author="{The earthbench authors}",
            version=version("earthbench"),
        )
    ]
    if published is not None:
        paper = published.paper
        year = re.search(r"\d{4}", paper["venue"])
        entries.append(
            _entry(
                "inproceedings",
                f"arxiv{paper['arxiv'].replace('.', '')}",
                title=paper["title"],
                author=" and ".join(paper["authors"].split(", ")),
                booktitle=paper["venue"],
                year=year[0] if year else "",
                eprint=paper["arxiv"],
                archiveprefix="arXiv",
            )
        )
    return "\n".join(entries)


def _entry(kind: str, key: str, **fields: str) -> str:
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@{kind}{{{key},", *lines, "}", ""])
