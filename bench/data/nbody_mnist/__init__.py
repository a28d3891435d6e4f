"""N-body MNIST: digits that attract one another."""

from bench.renamed import attributes

__getattr__ = attributes(__name__)
