"""Hydra's config groups as package data; `task` and `model` are filled from the registry, see `bench.config`."""
