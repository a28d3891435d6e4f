"""Ablations: a model's hyperparameters varied by Hydra, every run once, and one table of costs and scores."""
