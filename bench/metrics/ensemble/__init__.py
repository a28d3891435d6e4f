"""Scores of ensembles: CRPS, Brier score, reliability, rank histogram, spread and error."""
