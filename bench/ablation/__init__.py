"""Sweeps on data: which runs are there already, what is decided on validation, and an ablation's table of costs."""
