"""NOAA's ERSST: observed sea-surface temperature by month."""

from bench.renamed import attributes

__getattr__ = attributes(__name__)
