"""Energy error of N-body forecasts."""

from bench.renamed import attributes

__getattr__ = attributes(__name__)
