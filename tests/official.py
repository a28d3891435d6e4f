"""Stand-ins for the official data: its shapes, and records on it, made from a record on storms."""

from __future__ import annotations

from bench.records.schema import RunRecord, TrainingSummary

PAPER_SETTINGS = {
    "max_epochs": 100, "max_steps": None, "limit": None, "lr": 1e-3, "weight_decay": 0.0,
    "early_stopping": {"monitor": "val/csi_m", "patience": 20},
}  # fmt: skip
"""What the rows of the tables of SEVIR are trained with, where it is not the default."""

SHAPES = {
    "sevir": ((13, 384, 384, 1), (12, 384, 384, 1)),
    "sevir_lr": ((7, 128, 128, 1), (6, 128, 128, 1)),
    "icar_enso": ((12, 24, 48, 1), (14, 24, 48, 1)),
    "nbody_mnist": ((10, 64, 64, 1), (10, 64, 64, 1)),
    "moving_mnist": ((10, 64, 64, 1), (10, 64, 64, 1)),
}
"""Context and target of each data set as the papers have them, `(T,H,W,C)`."""


def as_official(record: RunRecord, **changes: object) -> RunRecord:
    """The record as if it had been made on the complete official test set."""
    assert record.data is not None
    data = record.data.model_copy(
        update={"origin": "files", "sequence_count": 12_159, "sequence_count_available": 12_159}
    )
    return record.model_copy(update={"data": data, **changes})


def trained_with(settings: dict, **changes: object) -> TrainingSummary:
    fields = {
        "settings": settings, "data_fingerprint": "f" * 64, "data_origin": "files", "sequence_count": 35_718,
        "validation_sequence_count": 9_060, "epochs": 3, "steps": 3, "resumed_count": 0,
        "stopped_because": "max_epochs", "monitor": None, "best_score": None, "weights": "last", "averaged": False,
        "final_loss": 1.0, "wall_s": 1.0,
    }  # fmt: skip
    return TrainingSummary(**{**fields, **changes})


def unet_like(measured: RunRecord, **changes: object) -> RunRecord:
    model = measured.model.model_copy(update={"name": "unet", "parameters": 16_556_044, "gmacs": 32.80})
    return as_official(measured, **{"model": model, "training": trained_with(PAPER_SETTINGS), **changes})
