"""The tables that this project registers."""

from __future__ import annotations

from typing import Any

from bench.metrics.skill.formulas import VIL_THRESHOLDS
from bench.tables.definitions import Column, Row, Table

# Cost has no better side: persistence, which has none, would always win.
_PARAMETERS = Column(key="parameters", label="Params M", group="Cost", scale=1e-6, digits=1, tolerance_percent=0.5)
_GMACS = Column(key="gmacs", label="GMACs", group="Cost", digits=1, tolerance_percent=1.0)
_COST = (_PARAMETERS, _GMACS)
# Wall time is of the machine and whatever else ran on it, so it stands where everything was measured here.
OWN_COST = (*_COST, Column(key="training_s", label="Training min", group="Cost", scale=1 / 60, digits=1))
_LEVELS = {"m": "CSI-M", **{str(level): f"CSI-{level}" for level in reversed(VIL_THRESHOLDS)}}
_CSI = tuple(Column(key=f"csi_{level}", label=label, group="CSI") for level, label in _LEVELS.items())
_MSE_1E3 = Column(key="mse", label="MSE 1e-3", group="Error", scale=1e3)
_MAE_1E2 = Column(key="mae", label="MAE 1e-2", group="Error", scale=1e2)
_NINO = (
    Column(key="c_nino34_m", label="C-Nino3.4-M", group="Skill"),
    Column(key="c_nino34_wm", label="C-Nino3.4-WM", group="Skill", digits=3),
)
_MSE_1E4 = Column(key="mse", label="MSE 1e-4", group="Error", scale=1e4, digits=3)
_FRAMES = (
    Column(key="mse_frame_sum", label="MSE", group="Error", digits=2),
    Column(key="mae_frame_sum", label="MAE", group="Error", digits=2),
    Column(key="ssim", label="SSIM", group="Error"),
)
_LABELS = {
    "persistence": "Persistence", "unet": "UNet", "convlstm": "ConvLSTM", "predrnn": "PredRNN", "phydnet": "PhyDNet",
    "e3d_lstm": "E3D-LSTM", "rainformer": "Rainformer", "earthformer_no_global": "Earthformer w/o global",
    "earthformer": "Earthformer",
}  # fmt: skip
_DOUBLED = (
    "published at twice the count of the plain formulation (fvcore, multiply-add = 1), here and on every data set; "
    "compared with half the published figure"
)
_MACS_NOTE = "The papers print multiply-adds as GFLOPS; we call them GMACs (one GMAC is two GFLOP)."


def _rows(**notes: dict[str, str]) -> tuple[Row, ...]:
    doubled = ("predrnn", "e3d_lstm")
    return tuple(
        Row(
            model=model,
            label=label,
            notes={**({"gmacs": _DOUBLED} if model in doubled else {}), **notes.get(model, {})},
            published_factors={"gmacs": 2.0} if model in doubled else {},
        )
        for model, label in _LABELS.items()
    )


EARTHFORMER_SEVIR = Table(
    name="earthformer/sevir",
    title="Earthformer (NeurIPS 2022), SEVIR: 13 -> 12 frames of 384x384",
    task="sevir",
    columns=(*_COST, *_CSI, _MSE_1E3),
    rows=_rows(
        convlstm={"gmacs": "the authors' strides are not known; none tried gives 527 (nearest: 517)"},
        phydnet={"gmacs": "no natural configuration gives both published figures (ours has the parameters)"},
    ),
    published="earthformer_sevir.json",
    settings="earthformer_sevir.json",
    sequence_counts=(12_159,),
    training_sequence_counts=(35_718,),
    training={"max_epochs": 100, "max_steps": None, "limit": None, "lr": 1e-3, "weight_decay": 0.0},
    experiment=("train=earthformer_sevir", "data.batch_size=32"),
    note=(
        "CSI: counts pooled over sequences, lead times and pixels, 1e-4 added to denominators (convention 'upstream'). "
        + _MACS_NOTE
    ),
)
"""SEVIR results of the Earthformer paper: nine models, CSI at six thresholds, MSE."""

EARTHFORMER_SEVIR_PER_LEAD = EARTHFORMER_SEVIR.model_copy(
    update={
        "name": "earthformer/sevir_per_lead",
        "title": "Earthformer (NeurIPS 2022), SEVIR, challenge-style: CSI per lead time, then the mean over 12 leads",
        "columns": (
            *(
                Column(key=f"csi_{level}_per_lead_mean", label=f"{label} per lead", group="CSI")
                for level, label in _LEVELS.items()
            ),
            _MSE_1E3,
            _MAE_1E2,
        ),
        "rows": _rows(),
        "published": "earthformer_sevir_per_lead.json",
        "note": (
            "Means over lead times of scores per lead time: other numbers than those of earthformer/sevir, which pools "
            "the counts of all leads. The same run fills both tables."
        ),
    }
)
"""SEVIR results of the Earthformer paper, challenge-style: means over lead times of CSI per lead time."""

EARTHFORMER_ICAR_ENSO = Table(
    name="earthformer/icar_enso",
    title="Earthformer (NeurIPS 2022), ICAR-ENSO: 12 -> 14 months of sea-surface temperature",
    task="icar_enso",
    columns=(*_COST, *_NINO, _MSE_1E4),
    rows=_rows(unet={"gmacs": "our three-level layout has the parameters and 0.35 GMACs, which prints 0.3"}),
    published="earthformer_icar_enso.json",
    settings="earthformer_icar_enso.json",
    sequence_counts=(1_679,),
    training_sequence_counts=(52_350,),
    training={"max_epochs": 100, "max_steps": None, "limit": None},
    experiment=("train=earthformer_icar_enso", "data.batch_size=64"),
    note=(
        "Test windows of 12 -> 14 months at every month: 1,679 (the paper's 1,667 come from 12 -> 26 windows). "
        + _MACS_NOTE
    ),
)
"""ICAR-ENSO results of the Earthformer paper: nine models, correlation skill of Nino3.4, MSE."""

_PATTERNS = {
    "axial": "Axial",
    "divided_st": "Divided space-time",
    "video_swin_2x8": "Video Swin 2x8",
    "video_swin_10x8": "Video Swin 10x8",
    "spatial_lg_2": "Spatial local-dilated 2",
    "spatial_lg_4": "Spatial local-dilated 4",
    "spatial_lg_8": "Spatial local-dilated 8",
    "axial_space_dilate_2": "Axial space dilated 2",
    "axial_space_dilate_4": "Axial space dilated 4",
    "axial_space_dilate_8": "Axial space dilated 8",
}


def _pattern_rows(**size: Any) -> tuple[Row, ...]:
    """Returns a row per pattern, without and with global vectors, of the preset's size but for some hyperparameters."""
    rows = []
    for pattern, label in _PATTERNS.items():
        for vectors in (0, 8):
            # Rows differ from the model's preset only where they must: the preset is axial with 8 vectors.
            options = size | ({"enc_attn_patterns": pattern} if size or pattern != "axial" else {})
            options |= {"num_global_vectors": vectors} if size or vectors != 8 else {}
            name = pattern + ("_global" if vectors else "")
            rows.append(
                Row(
                    model="earthformer",
                    name=name,
                    label=label + (" + global" if vectors else ""),
                    options=options,
                )
            )
    return tuple(rows)


_PATTERN_NOTE = (
    "Only the encoder's pattern is varied; the decoder stays axial, depth 4,4, base units 64. The paper's figures of "
    "these rows could not be confirmed from a source, so none is printed; the sizes are our counts. "
)
_PATTERN_TRAINING = {"max_epochs": 100, "max_steps": None, "limit": None, "lr": 1e-3, "weight_decay": 1e-5}
_PATTERN_EXPERIMENT = ("train.weight_decay=1e-5", "data.batch_size=32")

EARTHFORMER_PATTERNS_MOVING_MNIST = Table(
    name="earthformer/patterns_moving_mnist",
    title="Earthformer (NeurIPS 2022), cuboid patterns and global vectors on MovingMNIST: 10 -> 10 frames of 64x64",
    task="moving_mnist",
    columns=(*_COST, *_FRAMES),
    rows=(*_pattern_rows(), Row(model="phydnet", label="PhyDNet")),
    published="earthformer_patterns_moving_mnist.json",
    sequence_counts=(1_000,),
    training_sequence_counts=(8_100,),
    training=_PATTERN_TRAINING,
    experiment=_PATTERN_EXPERIMENT,
    note=_PATTERN_NOTE + "Errors are sums over a frame, averaged over frames. " + _MACS_NOTE,
)
"""The ablation of cuboid patterns, each with and without global vectors, on MovingMNIST."""

EARTHFORMER_PATTERNS_NBODY_MNIST = Table(
    name="earthformer/patterns_nbody_mnist",
    title="Earthformer (NeurIPS 2022), cuboid patterns and global vectors on N-body MNIST: 10 -> 10 frames of 64x64",
    task="nbody_mnist",
    columns=(*_COST, *_FRAMES),
    rows=_pattern_rows(),
    sequence_counts=(1_000,),
    training_sequence_counts=(20_000,),
    training=_PATTERN_TRAINING,
    experiment=_PATTERN_EXPERIMENT,
    note=_PATTERN_NOTE + "Errors are sums over a frame, averaged over frames. " + _MACS_NOTE,
)
"""The ablation of cuboid patterns, each with and without global vectors, on N-body MNIST."""

_SMALL = {
    "base_units": 16,
    "num_heads": 2,
    "initial_downsample_scale": 4,
    "enc_depth": [1, 1],
    "dec_depth": [1, 1],
}

SMALL_PATTERNS_NBODY_MNIST = Table(
    name="ablations/patterns_nbody_mnist",
    title=(
        "Cuboid patterns and global vectors of a small Earthformer (base units 16, depth 1,1) on 512 generated N-body "
        "MNIST sequences: one epoch, 128 steps of 4"
    ),
    task="nbody_mnist",
    columns=(*OWN_COST, *_FRAMES),
    rows=_pattern_rows(**_SMALL),
    data_origin="generated N-body MNIST",
    sequence_counts=(128,),
    training_sequence_counts=(512,),
    training={"max_epochs": 1, "max_steps": None, "limit": None, "lr": 1e-3},
    note=(
        "Measured here, of a size and budget that a CPU has time for: it says which patterns learn fast, not which are "
        "best when trained to the end. The encoder's pattern is varied, the decoder stays axial. Errors are sums over "
        "a frame, averaged over frames."
    ),
)
"""The ablation of cuboid patterns at a size and budget of minutes on a CPU."""

PREDIFF_SEVIR_LR = Table(
    name="prediff/sevir_lr",
    title="PreDiff (NeurIPS 2023), SEVIR-LR: 7 -> 6 frames of 128x128",
    task="sevir_lr",
    columns=(
        *_COST,
        Column(key="fvd", label="FVD", group="Distribution", digits=2),
        Column(key="crps", label="CRPS", group="Distribution"),
        *_CSI[:1],
        Column(key="csi_m_pool4", label="CSI-M pool 4", group="CSI"),
        Column(key="csi_m_pool16", label="CSI-M pool 16", group="CSI"),
        *_CSI[1:],
        *(
            Column(key=f"csi_{level}_pool{pool}", label=f"CSI-{level} pool {pool}", group="CSI")
            for pool in (4, 16)
            for level in (219, 133, 74)
        ),
    ),
    rows=(
        *(Row(model=model, label=label) for model, label in _LABELS.items() if model != "earthformer_no_global"),
        Row(model="dgmr", label="DGMR", experiment=("train=dgmr_sevir_lr", "data.batch_size=16")),
        Row(model="videogpt", label="VideoGPT", experiment=("train=videogpt_sevir_lr", "data.batch_size=32")),
        Row(model="ldm", label="LDM", experiment=("train=ldm_sevir_lr", "data.batch_size=32")),
        Row(model="prediff", label="PreDiff", experiment=("train=prediff_sevir_lr", "data.batch_size=32")),
        Row(model="prediff_ka", label="PreDiff-KA", experiment=("train=prediff_ka_sevir_lr", "data.batch_size=32")),
    ),
    published="prediff_sevir_lr.json",
    settings="prediff_sevir_lr.json",
    sequence_counts=(12_159,),
    training_sequence_counts=(35_718, 40_301),
    training={"max_steps": None, "limit": None},
    experiment=("train=earthformer_sevir", "data.batch_size=32"),
    note=(
        "The CSI of the deterministic rows equals, digit for digit, that of the Earthformer paper on SEVIR at 384x384, "
        "so it is not compared with runs on SEVIR-LR. Parameters and most FVD and CRPS cells could not be confirmed "
        "from a source and are left out. 35,718 training sequences: split by date; 40,301: the authors' random 90 %."
    ),
)
"""SEVIR-LR results of the PreDiff paper: thirteen models, CSI at three pools, CRPS, FVD."""

_OWN_COLUMNS = (
    *OWN_COST,
    *_CSI,
    _MSE_1E3,
    _MAE_1E2,
)
_OWN_NOTE = "Measured here; one block per data set, split and task options. Nothing in it is published elsewhere."

RUNS_SEVIR = Table(
    name="runs/sevir",
    title="Every complete run on data in SEVIR's format",
    task="sevir",
    columns=_OWN_COLUMNS,
    note=_OWN_NOTE,
)
"""All complete runs of the task sevir, whatever the data: one block per data set."""

RUNS_RADAR = Table(
    name="runs/radar",
    title="Every complete run on observed radar",
    task="radar",
    columns=_OWN_COLUMNS,
    note=f"{_OWN_NOTE} Lead times are frames, whose cadence is the data's: figures of two blocks are of two tasks.",
)
"""All complete runs of the task radar: one block per folder of data and split."""

RUNS_SEVIR_LR = Table(
    name="runs/sevir_lr",
    title="Every complete run on data in SEVIR-LR's format",
    task="sevir_lr",
    columns=_OWN_COLUMNS,
    note=_OWN_NOTE,
)
"""All complete runs of the task sevir_lr, whatever the data: one block per data set."""

RUNS_ICAR_ENSO = Table(
    name="runs/icar_enso",
    title="Every complete run on data in ICAR-ENSO's format",
    task="icar_enso",
    columns=(
        *OWN_COST,
        *_NINO,
        Column(key="rmse_nino34", label="Nino3.4 RMSE K", group="Error", digits=3),
        _MSE_1E4,
        Column(key="mae", label="MAE 1e-3", group="Error", scale=1e3, digits=3),
    ),
    note=_OWN_NOTE,
)
"""All complete runs of the task icar_enso, climate models and observed records: one block per data set."""

RUNS_NBODY_MNIST = Table(
    name="runs/nbody_mnist",
    title="Every complete run on N-body MNIST",
    task="nbody_mnist",
    columns=(
        *OWN_COST,
        *_FRAMES,
        Column(key="e_mse", label="E.MSE", digits=3),
        Column(key="e_mae", label="E.MAE", digits=3),
    ),
    note=f"{_OWN_NOTE} Energies are of tracked digits, not of the learned detector of the PreDiff paper.",
)
"""All complete runs of the task nbody_mnist, generated or the authors' data: one block per data set."""

RUNS_MOVING_MNIST = Table(
    name="runs/moving_mnist",
    title="Every complete run on MovingMNIST",
    task="moving_mnist",
    columns=(*OWN_COST, *_FRAMES),
    note=_OWN_NOTE,
)
"""All complete runs of the task moving_mnist, generated or the authors' data: one block per data set."""

RUNS_ENSO_ERSST = Table(
    name="runs/enso_ersst",
    title="Every complete run on observed sea-surface temperature",
    task="enso_ersst",
    columns=(
        *OWN_COST,
        *_NINO,
        Column(key="rmse_nino34", label="Nino3.4 RMSE K", group="Error", digits=3),
        Column(key="mse", label="MSE K^2", group="Error"),
        Column(key="mae", label="MAE K", group="Error"),
    ),
    note=f"{_OWN_NOTE} A climatology has no variance and so no correlation. Errors are means over sea and land (0).",
)
"""All complete runs of the task enso_ersst: one block per record and time split."""
