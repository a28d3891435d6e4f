"""Sweeps on data: runs that exist, decisions on the validation split, and an ablation's table of costs."""
