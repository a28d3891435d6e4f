"""MovingMNIST: digits that move straight on between walls."""

from bench.renamed import attributes

__getattr__ = attributes(__name__)
