"""Frechet distance between the features of forecast and observed clips."""

from bench.renamed import attributes

__getattr__ = attributes(__name__)
