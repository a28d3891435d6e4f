"""The columns of the tables, in the papers' units."""

from __future__ import annotations

from bench.metrics.skill.formulas import VIL_THRESHOLDS
from bench.tables.definitions import Column

# Cost has no direction, because persistence, which costs nothing, would always win.
PARAMETERS = Column(key="parameters", label="Params M", group="Cost", scale=1e-6, digits=1, tolerance_percent=0.5)
GMACS = Column(key="gmacs", label="GMACs", group="Cost", digits=1, tolerance_percent=1.0)
COST = (PARAMETERS, GMACS)
# Wall time depends on the machine and its load, so it is shown only if all rows were measured here.
OWN_COST = (*COST, Column(key="training_s", label="Training min", group="Cost", scale=1 / 60, digits=1))
TRAINING_CPU = Column(key="cpu_s", label="Training CPU s", group="Cost", digits=0)
BOARD_COST = (
    Column(key="parameters", label="Params M", group="Cost", scale=1e-6, digits=3),
    TRAINING_CPU,
)
LEVELS = {"m": "CSI-M", **{str(level): f"CSI-{level}" for level in reversed(VIL_THRESHOLDS)}}
CSI = tuple(Column(key=f"csi_{level}", label=label, group="CSI") for level, label in LEVELS.items())
MSE_1E3 = Column(key="mse", label="MSE 1e-3", group="Error", scale=1e3)
MAE_1E2 = Column(key="mae", label="MAE 1e-2", group="Error", scale=1e2)
NINO = (
    Column(key="c_nino34_m", label="C-Nino3.4-M", group="Skill"),
    Column(key="c_nino34_wm", label="C-Nino3.4-WM", group="Skill", digits=3),
)
NINO_RMSE = Column(key="rmse_nino34", label="Nino3.4 RMSE K", group="Error", digits=3)
MSE_K2 = Column(key="mse", label="MSE K^2", group="Error")
OCEAN = (
    Column(key="mse_ocean", label="MSE ocean K^2", group="Error", optional=True),
    Column(key="mae_ocean", label="MAE ocean K", group="Error", optional=True),
)
"""Errors over the sea, area-weighted."""
MSE_1E4 = Column(key="mse", label="MSE 1e-4", group="Error", scale=1e4, digits=3)
FRAMES = (
    Column(key="mse_frame_sum", label="MSE", group="Error", digits=2),
    Column(key="mae_frame_sum", label="MAE", group="Error", digits=2),
    Column(key="ssim", label="SSIM", group="Error"),
)
ENERGY = (
    Column(key="e_mse", label="E.MSE", group="Energy", digits=3),
    Column(key="e_mae", label="E.MAE", group="Energy", digits=3),
)


def skill_columns(*columns: Column) -> tuple[Column, ...]:
    """Returns a column for the skill in each of some scores."""
    return tuple(
        Column(
            key=f"skill_{column.key}", label=f"Skill {column.label}", group="Skill score", digits=3, better=None,
            skill_of=column.key, optional=column.optional,
        )
        for column in columns
    )  # fmt: skip
