"""Gridded data of one's own: any cube on (time, y, x) that xarray reads."""
