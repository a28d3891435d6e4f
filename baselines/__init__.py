"""Baseline models, one file per family. Nothing here depends on the harness."""
