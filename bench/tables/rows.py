"""Rows that the tables of both papers share: the baselines, and how their own authors trained them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.tables.definitions import Row

LABELS = {
    "persistence": "Persistence", "unet": "UNet", "convlstm": "ConvLSTM", "predrnn": "PredRNN", "phydnet": "PhyDNet",
    "e3d_lstm": "E3D-LSTM", "rainformer": "Rainformer", "earthformer_no_global": "Earthformer w/o global",
    "earthformer": "Earthformer",
}  # fmt: skip
_DOUBLED = (
    "published at twice the count of the plain formulation (fvcore, multiply-add = 1), here and on every data set; "
    "compared with half the published figure"
)
MACS_NOTE = "The papers print multiply-adds as GFLOPS; we call them GMACs (one GMAC is two GFLOP)."


E3D_NOTE = (
    "the convolutions in front of its norms have no biases here: with those of the original its first update turned "
    "states of zeros into +-1, and all its forecasts into one"
)


def rows_of_models(recipes: Mapping[str, dict[str, Any]] | None = None, **notes: dict[str, str]) -> tuple[Row, ...]:
    """Returns the rows of the Earthformer paper's tables.

    Args:
        recipes: Fields of the rows of some models.
        **notes: Remarks on published figures, by model.
    """
    doubled = ("predrnn", "e3d_lstm")
    return tuple(
        Row(
            model=model,
            label=label,
            notes={**({"gmacs": _DOUBLED} if model in doubled else {}), **notes.get(model, {})},
            published_factors={"gmacs": 2.0} if model in doubled else {},
            **{**({"note": E3D_NOTE} if model == "e3d_lstm" else {}), **(recipes or {}).get(model, {})},
        )
        for model, label in LABELS.items()
    )


# What the authors of a baseline did on moving MNIST.
OWN_RECIPES: dict[str, dict[str, Any]] = {
    "predrnn": {
        "experiment": ("train=predrnn_moving_mnist", "data.batch_size=8"),
        "training": {"max_epochs": 80, "max_steps": 80_000, "lr": 3e-4, "weight_decay": 0.0},
        "note": "trained as by its own authors on moving MNIST, but for their second step on each clip, backwards",
    },
    "phydnet": {
        "experiment": ("train=phydnet_moving_mnist", "data.batch_size=16"),
        "training": {"schedule": "plateau", "weight_decay": 0.0},
        "note": "trained as by its own authors on moving MNIST, with their schedule; for how long is not known",
    },
    "e3d_lstm": {
        "experiment": ("train=e3d_lstm_moving_mnist", "data.batch_size=4"),
        "training": {"weight_decay": 0.0},
        "note": f"trained as by its own authors on moving MNIST; for how long is not known; {E3D_NOTE}",
    },
}
# A sigmoid cannot reach brightness 255.
RECIPES_ON_NBODY = {
    **OWN_RECIPES,
    "phydnet": {
        **OWN_RECIPES["phydnet"],
        "task_options": {"rescale_01": True},
        "note": f"{OWN_RECIPES['phydnet']['note']}; it sees brightness 0..1, where its forecasts lie",
    },
}
