"""ICAR-ENSO: sea-surface temperature of climate models."""

from bench.renamed import attributes

__getattr__ = attributes(__name__)
