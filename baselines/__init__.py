"""Baseline models, one file per family; nothing here knows of the harness."""
