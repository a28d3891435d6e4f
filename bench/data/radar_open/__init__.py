"""Observed radar of the public pysteps-data archive, as trees in SEVIR's format that anyone can rebuild."""
