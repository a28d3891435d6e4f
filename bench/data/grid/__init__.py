"""The user's gridded data: any cube on (time, y, x) that xarray reads."""
