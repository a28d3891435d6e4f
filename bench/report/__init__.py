"""A static site of tables, charts and forecasts that opens from the disk without a network."""

from bench.report.site import build

__all__ = ["build"]
