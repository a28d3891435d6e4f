"""Data sets on disk: the only package of the harness that opens data files."""
