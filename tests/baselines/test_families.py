"""What every family must do: shapes, gradients, rows, counts, presets, and equal results in both formulations."""

import ast
import contextlib
import copy
import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from official import SHAPES
from torch import Tensor, nn

from baselines.rollout import frames_at_once

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "convlstm": ("ConvLSTM", {"hidden": (4, 6, 8), "head_channels": 3}),
    "predrnn": ("PredRNN", {"hidden": (6, 6)}),
    "predrnn_v2": (
        "PredRNN",
        {"hidden": (6, 6), "layer_norm": True, "memory_decoupling": True, "sampling": "reverse_scheduled"},
    ),
    "predrnn_stem": ("PredRNN", {"hidden": (6, 6), "patch_size": 2, "stem_channels": 4}),
    "phydnet": ("PhyDNet", {"phy_hidden": (7, 14), "conv_hidden": (6, 64)}),
    "e3d_lstm": ("E3DLSTM", {"hidden": (4, 4), "kernel_size": 3}),
    "e3d_lstm_stem": (
        "E3DLSTM",
        {"hidden": (4, 4), "kernel_size": 3, "patch_size": 2, "stem_channels": 4, "drops_memory": False},
    ),
    "rainformer": (
        "Rainformer",
        {"hidden": 8, "heads": (1, 1, 2, 2), "head_dim": 4, "window": 2, "layers": (2, 2, 2, 4)},
    ),
    "simvp": ("SimVP", {"hid_s": 4, "hid_t": 6, "n_t": 3}),
    "tau": ("TAU", {"hid_s": 4, "hid_t": 6, "n_t": 3}),
}
MODULES = {"E3DLSTM": "e3d_lstm", "TAU": "simvp"}
ROLLING = [name for name, (cls, _) in FAMILIES.items() if cls not in ("Rainformer", "SimVP", "TAU")]
# Parameters of SEVIR, SEVIR-LR, ICAR-ENSO and both MNISTs, and published-convention GMACs of ICAR-ENSO.
COUNTS = {
    "ConvLSTM": ((13_966_577, 13_966_577, 13_966_577, 13_966_577), 11.07),
    "PredRNN": ((46_551_889, 24_920_064, 23_838_720, 23_838_720), 42.910),
    "PhyDNet": ((13_710_612, 3_091_732, 3_091_732, 3_091_732), 5.671),
    "E3DLSTM": ((35_609_169, 13_976_384, 12_894_992, 12_894_992), 49.910),
    "Rainformer": ((183_952_768, 23_934_700, 19_178_692, 19_193_104), 1.334),
    "SimVP": ((52_911_553, 42_361_345, 12_758_305, 46_769_665), 7.881),
    "TAU": ((50_521_217, 40_450_625, 12_219_553, 44_656_001), 7.534),
}
# Operations without multiply-adds that fvcore does not count: elementwise, pooling, moving of elements.
FREE_OPERATIONS = {
    *("add", "add_", "sub", "mul", "sigmoid", "tanh", "leaky_relu", "relu", "silu", "gelu", "softmax", "mean"),
    *("adaptive_max_pool2d", "pixel_shuffle", "pixel_unshuffle", "unflatten"),
}


def family_class(cls: str) -> type[nn.Module]:
    return getattr(importlib.import_module(f"baselines.{MODULES.get(cls, cls.lower())}"), cls)


def build(name: str, t_in: int = 3, t_out: int = 4, height: int = 32, width: int = 64, channels: int = 2) -> nn.Module:
    cls, arguments = FAMILIES[name]
    torch.manual_seed(0)
    return family_class(cls)((t_in, height, width, channels), (t_out, height, width, channels), **arguments)


def loss_of(model: nn.Module, context: Tensor, target: Tensor) -> Tensor:
    if not hasattr(model, "training_loss"):
        return (model(context) - target).square().mean()
    loss = model.training_loss(context, target, step=3, total_steps=10)
    return sum(loss.values()) if isinstance(loss, dict) else loss


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)


@pytest.fixture
def context() -> Tensor:
    return torch.rand(2, 3, 32, 64, 2, generator=torch.Generator().manual_seed(1))


def test_forecasts_have_the_target_shape_and_are_repeatable(model: nn.Module, context: Tensor) -> None:
    model.eval()
    before = context.clone()
    with torch.no_grad():
        forecast = model(context)
        assert torch.equal(forecast, model(context))
    assert forecast.shape == (2, 4, 32, 64, 2)
    assert forecast.dtype == torch.float32
    assert forecast.isfinite().all()
    assert torch.equal(context, before)


def test_samples_of_a_batch_are_independent(model: nn.Module, context: Tensor) -> None:
    model.eval()
    with torch.no_grad():
        together = model(context)
        apart = torch.cat([model(row[None]) for row in context])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def test_every_used_parameter_gets_a_gradient(model: nn.Module, context: Tensor) -> None:
    model.train()
    model.zero_grad(set_to_none=True)
    target = torch.rand(2, 4, 32, 64, 2, generator=torch.Generator().manual_seed(2))
    loss_of(model, context, target).backward()
    missing = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    # Rainformer's gates declare two convolutions that are never called, and only a stage's last group runs.
    pattern = r"layers\.\d\.4\.conv_[23]\.|down\.3\.layers\.0|up\.0\.layers\.0"
    unused = {name for name, _ in model.named_parameters() if re.search(pattern, name)}
    assert missing <= (unused if type(model).__name__ == "Rainformer" else set())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_state_dict_round_trip(model: nn.Module, context: Tensor, tmp_path: Path) -> None:
    model.eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
        other.load_state_dict(torch.load(tmp_path / "weights.pt"))
        assert torch.equal(model(context), other(context))


def test_sizes_may_be_lists() -> None:
    for name, (cls, arguments) in FAMILIES.items():
        as_lists = {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}
        model = family_class(cls)([2, 32, 32, 1], [1, 32, 32, 1], **as_lists)
        assert model(torch.rand(1, 2, 32, 32, 1)).shape == (1, 1, 32, 32, 1), name


@pytest.mark.parametrize("name", ROLLING)
@given(t_in=st.integers(1, 4), t_out=st.integers(1, 4), batch=st.integers(1, 2))
@settings(deadline=None, max_examples=4, derandomize=True)
def test_fast_and_plain_formulations_agree(name: str, t_in: int, t_out: int, batch: int) -> None:
    model = build(name, t_in, t_out, 16, 24, 1).double().eval()
    context = torch.rand(batch, t_in, 16, 24, 1, dtype=torch.float64)
    with torch.no_grad():
        fast = model(context)
        with model.reference() as same:
            assert same is model
            plain = model(context)
    torch.testing.assert_close(fast, plain, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ROLLING)
def test_fast_and_plain_formulations_agree_in_float32(name: str) -> None:
    model = build(name, 4, 5, 16, 24, 1).eval()
    context = torch.rand(2, 4, 16, 24, 1)
    with torch.no_grad():
        fast = model(context)
        with model.reference():
            plain = model(context)
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["convlstm", "phydnet"])
@pytest.mark.parametrize("frames", [1, 2, 3])
def test_the_fast_formulation_agrees_for_any_chunk_of_frames(
    name: str, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(name, 5, 4, 16, 24, 1).double().eval()
    context = torch.rand(2, 5, 16, 24, 1, dtype=torch.float64)
    monkeypatch.setattr("baselines.rollout.CPU_TENSOR_BYTES", frames * model.largest_frame * 2 * 8)
    assert frames_at_once(context.transpose(0, 1), model.largest_frame) == frames
    with torch.no_grad():
        fast = model(context)
        with model.reference():
            plain = model(context)
    torch.testing.assert_close(fast, plain, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ROLLING)
def test_fast_and_plain_formulations_have_the_same_gradients(name: str) -> None:
    model = build(name, 2, 3, 16, 24, 1).double()
    context, target = (torch.rand(2, t, 16, 24, 1, dtype=torch.float64) for t in (2, 3))
    gradients = []
    for form in (contextlib.nullcontext, getattr(model, "reference")):  # noqa: B009
        model.zero_grad()
        torch.manual_seed(5)
        with form():
            loss_of(model, context, target).backward()
        gradients.append({key: p.grad.clone() for key, p in model.named_parameters()})
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in ROLLING if name != "convlstm"])
def test_the_training_loss_is_deterministic_for_a_seed(name: str) -> None:
    model = build(name, 2, 4, 16, 16, 1)
    context, target = torch.rand(2, 2, 16, 16, 1), torch.rand(2, 4, 16, 16, 1)
    losses = []
    for _ in range(2):
        torch.manual_seed(11)
        losses.append(model.training_loss(context, target, step=2, total_steps=10))
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.equal(losses[0][key], losses[1][key]) for key in losses[0])


@pytest.mark.parametrize("cls", COUNTS)
def test_presets_are_literals_with_the_published_sizes(cls: str) -> None:
    model_class = family_class(cls)
    tree = ast.parse(Path(inspect.getsourcefile(model_class)).read_text())
    literal = next(
        ast.literal_eval(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "presets"
    )
    assert literal == model_class.presets
    assert literal.keys() - {"tiny"} == SHAPES.keys()
    expected = dict(zip(SHAPES, (*COUNTS[cls][0], COUNTS[cls][0][-1]), strict=True))
    with torch.device("meta"):
        counted = {
            task: sum(p.numel() for p in model_class(*SHAPES[task], **literal[task]).parameters()) for task in SHAPES
        }
    assert counted == expected


@pytest.mark.slow
@pytest.mark.parametrize("cls", COUNTS)
def test_the_plain_formulation_has_the_gflops_published_for_icar_enso(cls: str) -> None:
    fvcore = pytest.importorskip("fvcore.nn")
    model_class = family_class(cls)
    model = model_class(*SHAPES["icar_enso"], **model_class.presets["icar_enso"]).eval()
    form = model.reference() if hasattr(model, "reference") else contextlib.nullcontext()
    with form, torch.no_grad():
        analysis = fvcore.FlopCountAnalysis(model, torch.rand(1, *SHAPES["icar_enso"][0]))
        analysis.unsupported_ops_warnings(False)
        total = analysis.total() / 1e9
        uncounted = {operation.removeprefix("aten::") for operation in analysis.unsupported_ops()}
    assert total == pytest.approx(COUNTS[cls][1], abs=0.005 if cls == "ConvLSTM" else 0.0006)
    assert uncounted <= FREE_OPERATIONS


@pytest.mark.parametrize(
    ("cls", "arguments", "shape", "message"),
    [
        ("ConvLSTM", {}, (2, 20, 32, 1), "ConvLSTM: height must be divisible by 8, got 20"),
        ("ConvLSTM", {"hidden": (4, 4)}, (2, 32, 32, 1), "strides must be 2 positive sizes"),
        ("ConvLSTM", {"conv_kernels": (5, 4, 5)}, (2, 32, 32, 1), "conv_kernels must be odd"),
        ("ConvLSTM", {"strides": (2, 1, 2)}, (2, 32, 32, 1), "deconv_kernels must cover"),
        ("PredRNN", {}, (2, 32, 30, 1), "PredRNN: width must be divisible by 4, got 30"),
        ("PredRNN", {"hidden": (4, 6)}, (2, 32, 32, 1), "hidden must be the same in all layers"),
        ("PredRNN", {"kernel_size": 4}, (2, 32, 32, 1), "kernel_size must be odd, got 4"),
        ("PhyDNet", {"strides": (2, 2, 2)}, (2, 20, 32, 1), "PhyDNet: height must be divisible by 8, got 20"),
        ("PhyDNet", {"phy_hidden": (10,)}, (2, 32, 32, 1), "phy_hidden must be divisible by 7, got 10"),
        ("PhyDNet", {"phy_hidden": (56,)}, (2, 32, 32, 1), "phy_hidden must be at most"),
        ("PhyDNet", {"phy_kernel": 6}, (2, 32, 32, 1), "phy_kernel must be odd"),
        (
            "PhyDNet",
            {"phy_hidden": (49, 7)},
            (2, 4, 4, 1),
            r"phy_hidden=7 on a code of one pixel \(strides \(2, 1, 2\)\).*expected two or more: phy_hidden=14",
        ),
        ("PhyDNet", {"conv_hidden": (64, 32)}, (2, 32, 32, 1), "conv_hidden must end with code_channels=64"),
        ("E3DLSTM", {}, (2, 32, 30, 1), "E3DLSTM: width must be divisible by 4, got 30"),
        ("E3DLSTM", {"hidden": (4, 6)}, (2, 32, 32, 1), "hidden must be the same in all layers"),
        ("E3DLSTM", {"kernel_size": 4}, (2, 32, 32, 1), "kernel_size must be odd, got 4"),
        ("E3DLSTM", {"l1_weight": -1.0}, (2, 32, 32, 1), "l1_weight must be 0 or a positive number, got -1.0"),
        ("Rainformer", {}, (2, 64, 32, 1), "windows of 4 at stage 4.* must be divisible by 64, got 32"),
        ("Rainformer", {"layers": (2, 3, 2, 2)}, (2, 64, 64, 1), "layers of a stage must be divisible by 2"),
        (
            "Rainformer",
            {"hidden": 2, "window": 2, "downscale": (1, 1, 1, 8)},
            (2, 64, 64, 1),
            "width of stage 4 must be divisible",
        ),
        ("Rainformer", {"heads": (1, 2)}, (2, 64, 64, 1), "heads must be 4 positive sizes"),
        ("Rainformer", {"loss": "l1"}, (2, 64, 64, 1), "loss must be mse or balanced_mae"),
        ("SimVP", {}, (2, 32, 30, 1), r"SimVP: width \(for n_s=4.*\) must be divisible by 4, got 30"),
        ("SimVP", {"n_s": 3}, (2, 32, 32, 1), "n_s must be divisible by 2, got 3"),
        ("SimVP", {"n_t": 1}, (2, 32, 32, 1), "n_t must be 2 or more.*got 1"),
        ("SimVP", {"hid_s": 5}, (2, 32, 32, 1), "hid_s must be divisible by 2, got 5"),
        ("SimVP", {"hid_s": 2}, (2, 4, 4, 1), r"SimVP: hid_s=2 on a code of one pixel \(n_s=4\).*expected 4 or more"),
        ("TAU", {"hid_t": 0}, (2, 32, 32, 1), r"TAU: hid_s, hid_t, n_s and n_t must be positive sizes"),
        ("TAU", {"drop_path": 1.0}, (2, 32, 32, 1), "drop_path must be 0 or more and below 1, got 1.0"),
        ("TAU", {"divergence_weight": -0.1}, (2, 32, 32, 1), "divergence_weight must be 0 or a positive number"),
    ],
)
def test_mismatched_shapes_and_options_are_refused(
    cls: str, arguments: dict[str, Any], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        family_class(cls)(shape, shape, **arguments)


def upstream_keys(listing: Path) -> dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]]:
    """Returns, per section of a listing of the originals' keys, the configuration and the shapes by key."""
    sections = {}
    for section in listing.read_text().split("\n## ")[1:]:
        lines = section.splitlines()
        config = ast.literal_eval(next(line for line in lines if line.startswith("config: ")).removeprefix("config: "))
        shapes = {
            key: ast.literal_eval(shape)
            for key, shape in (line.split("  ", 1) for line in lines if re.match(r"[\w.]+  \(", line))
        }
        sections[lines[0]] = (config, shapes)
    return sections


@pytest.mark.parametrize(
    ("section", "family", "shapes"),
    [
        ("predrnn_v1_ln0", "predrnn", ((4, 16, 16, 1), (3, 16, 16, 1))),
        ("predrnn_v1_ln1", "predrnn", ((4, 16, 16, 1), (3, 16, 16, 1))),
        ("predrnn_v2_ln0", "predrnn", ((4, 16, 16, 1), (3, 16, 16, 1))),
        ("phydnet", "phydnet", ((4, 16, 16, 1), (3, 16, 16, 1))),
        ("rainformer", "rainformer", ((5, 32, 32, 1), (4, 32, 32, 1))),
    ],
)
def test_weights_of_the_originals_load_key_by_key(
    section: str, family: str, shapes: tuple[tuple[int, ...], tuple[int, ...]], originals: Path
) -> None:
    config, listed = upstream_keys(originals / "baselines_state_dict_keys.txt")[section]
    assert listed
    weights = {key: torch.zeros(shape) if "mask" in key else torch.randn(shape) for key, shape in listed.items()}
    load = importlib.import_module(f"baselines.{family}").load_upstream
    model = load(config, weights, input_shape=shapes[0], target_shape=shapes[1])
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == listed
    assert all(torch.equal(value, weights[key].to(value.dtype)) for key, value in model.state_dict().items())
    some_key = next(iter(listed))
    broken = {**weights, "extra.weight": torch.zeros(1)}
    del broken[some_key]
    with pytest.raises(ValueError, match=rf"missing: {re.escape(some_key)}[\s\S]*left over: extra.weight"):
        load(config, broken, input_shape=shapes[0], target_shape=shapes[1])
    with pytest.raises(ValueError, match="the configuration does not fit"):
        load({}, weights, input_shape=shapes[0], target_shape=shapes[1])


def test_baselines_do_not_import_the_harness() -> None:
    for module in list(sys.modules):
        if module.startswith("baselines."):
            tree = ast.parse(Path(sys.modules[module].__file__).read_text())
            imported = {
                name
                for node in ast.walk(tree)
                for name in (
                    [alias.name for alias in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module or ""]
                    if isinstance(node, ast.ImportFrom)
                    else []
                )
            }
            assert not {name for name in imported if name.split(".")[0] in ("bench", "earthformer")}, module
