"""SEVIR and SEVIR-LR, and other radar archives in SEVIR's format."""

from bench.renamed import attributes

__getattr__ = attributes(__name__)
