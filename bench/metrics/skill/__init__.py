"""Categorical skill at intensity thresholds: CSI, POD, SUCR, FAR, BIAS, HSS and FSS."""

from bench.renamed import attributes

__getattr__ = attributes(__name__)
