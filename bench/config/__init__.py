"""The run's config: composed by Hydra, checked by pydantic, named by a fingerprint."""

from bench.config.fingerprints import canonical_json, fingerprint, numbers_of, numbers_only, stored
from bench.config.hydra import (
    compose,
    composed_by_hydra,
    expand_sweep,
    hydra_errors,
    register_groups,
    to_plain,
)
from bench.config.messages import explain
from bench.config.schema import (
    BUDGETS,
    Config,
    Data,
    EarlyStopping,
    Evaluate,
    Results,
    Train,
    check_hyperparameters,
    validate,
)

__all__ = [
    "BUDGETS",
    "Config",
    "Data",
    "EarlyStopping",
    "Evaluate",
    "Results",
    "Train",
    "canonical_json",
    "check_hyperparameters",
    "compose",
    "composed_by_hydra",
    "expand_sweep",
    "explain",
    "fingerprint",
    "hydra_errors",
    "numbers_of",
    "numbers_only",
    "register_groups",
    "stored",
    "to_plain",
    "validate",
]
