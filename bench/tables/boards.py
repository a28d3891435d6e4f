"""Tables of what was measured here: every complete run of a task, one block per data set."""

from __future__ import annotations

from bench.tables.columns import (
    CSI,
    ENERGY,
    FRAMES,
    MAE_1E2,
    MSE_1E3,
    MSE_1E4,
    MSE_K2,
    NINO,
    NINO_RMSE,
    OCEAN,
    OWN_COST,
    skill_columns,
)
from bench.tables.definitions import Column, Table

_COLUMNS = (
    *OWN_COST,
    *CSI,
    MSE_1E3,
    MAE_1E2,
    *skill_columns(CSI[0], MSE_1E3),
)
_NOTE = "Measured here; one block per data set, split and task options. Nothing in it is published elsewhere."

RUNS_SEVIR = Table(
    name="runs/sevir",
    title="Every complete run on data in SEVIR's format",
    task="sevir",
    columns=_COLUMNS,
    note=_NOTE,
)
"""All complete runs of the task sevir: one block per data set."""

RUNS_RADAR = Table(
    name="runs/radar",
    title="Every complete run on observed radar",
    task="radar",
    columns=_COLUMNS,
    note=f"{_NOTE} Lead times are frames, whose cadence is the data's: figures of two blocks are of two tasks.",
)
"""All complete runs of the task radar: one block per folder of data and split."""

RUNS_SEVIR_LR = Table(
    name="runs/sevir_lr",
    title="Every complete run on data in SEVIR-LR's format",
    task="sevir_lr",
    columns=_COLUMNS,
    note=_NOTE,
)
"""All complete runs of the task sevir_lr: one block per data set."""

RUNS_ICAR_ENSO = Table(
    name="runs/icar_enso",
    title="Every complete run on data in ICAR-ENSO's format",
    task="icar_enso",
    columns=(
        *OWN_COST,
        *NINO,
        NINO_RMSE,
        MSE_1E4,
        Column(key="mae", label="MAE 1e-3", group="Error", scale=1e3, digits=3),
        *skill_columns(NINO[0], NINO_RMSE, MSE_1E4),
    ),
    note=_NOTE,
)
"""All complete runs of the task icar_enso, climate models and observed records: one block per data set."""

RUNS_NBODY_MNIST = Table(
    name="runs/nbody_mnist",
    title="Every complete run on N-body MNIST",
    task="nbody_mnist",
    columns=(
        *OWN_COST,
        *FRAMES,
        *ENERGY,
        *skill_columns(FRAMES[0], FRAMES[2]),
    ),
    note=f"{_NOTE} Energies are of tracked digits, not of the learned detector of the PreDiff paper.",
)
"""All complete runs of the task nbody_mnist, generated or the authors' data: one block per data set."""

RUNS_MOVING_MNIST = Table(
    name="runs/moving_mnist",
    title="Every complete run on MovingMNIST",
    task="moving_mnist",
    columns=(*OWN_COST, *FRAMES, *skill_columns(FRAMES[0], FRAMES[2])),
    note=_NOTE,
)
"""All complete runs of the task moving_mnist, generated or the authors' data: one block per data set."""

RUNS_ENSO_ERSST = Table(
    name="runs/enso_ersst",
    title="Every complete run on observed sea-surface temperature",
    task="enso_ersst",
    columns=(
        *OWN_COST,
        *NINO,
        NINO_RMSE,
        MSE_K2,
        Column(key="mae", label="MAE K", group="Error"),
        *OCEAN,
        *skill_columns(NINO[0], NINO_RMSE, MSE_K2, OCEAN[0]),
    ),
    note=f"{_NOTE} A climatology has no variance and so no correlation. Errors are means over sea and land (0).",
)
"""All complete runs of the task enso_ersst: one block per record and time split."""
