"""Protocols of runs as data: ablations and boards, each a YAML file; knows configs, but no data, records or torch."""
