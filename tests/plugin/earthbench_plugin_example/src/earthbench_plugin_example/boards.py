"""A table with the plugin's model and persistence, and one column."""

from __future__ import annotations

from bench.tables.definitions import Column, Table

STORMS = Table(
    name="example/storms",
    title="Runs on data in SEVIR's format, by mean squared error",
    task="sevir",
    columns=(Column(key="mse", label="MSE 1e-3", group="Error", scale=1e3, better="lower"),),
)
"""Runs on storms, by mean squared error alone."""
