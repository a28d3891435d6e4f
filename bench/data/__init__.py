"""Data sets on disk: the only room of the harness that opens data files."""
