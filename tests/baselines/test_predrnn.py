"""PredRNN against its equations, written gate by gate and frame by frame."""

from argparse import Namespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.predrnn import PredRNN, SpatioTemporalLSTMCell, load_upstream

B, T_IN, T_OUT, HEIGHT, WIDTH, CHANNELS, PATCH, N = 2, 3, 4, 12, 18, 2, 3, 4


def fold(frame: Tensor) -> Tensor:
    """Folds a frame (B, H, W, C) pixel by pixel."""
    out = frame.new_zeros(len(frame), CHANNELS * PATCH**2, HEIGHT // PATCH, WIDTH // PATCH)
    for y in range(HEIGHT):
        for x in range(WIDTH):
            for c in range(CHANNELS):
                out[:, ((y % PATCH) * PATCH + x % PATCH) * CHANNELS + c, y // PATCH, x // PATCH] = frame[:, y, x, c]
    return out


def gates(weights: dict[str, Tensor], name: str, x: Tensor, labels: str) -> dict[str, Tensor]:
    """Returns a cell convolution's output by gate, each from its own slice of the weights."""
    weight = weights[f"{name}.0.weight"]
    out = torch.cat([F.conv2d(x, part, padding=weight.shape[-1] // 2) for part in weight.split(N)], dim=1)
    if f"{name}.1.weight" in weights:
        mean = out.mean(dim=(1, 2, 3), keepdim=True)
        variance = ((out - mean) ** 2).mean(dim=(1, 2, 3), keepdim=True)
        out = (out - mean) / (variance + 1e-5).sqrt() * weights[f"{name}.1.weight"] + weights[f"{name}.1.bias"]
    return dict(zip(labels.split(), out.split(N, dim=1), strict=True))


def brute_force(model: PredRNN, clip: Tensor, truth: list[list[float]]) -> tuple[Tensor, Tensor, float]:
    """Returns the patches predicted at each step (T, B, F, h, w), their MSE, and the decoupling loss.

    `truth[b][t]` says how much of the truth sample b reads at step t.
    """
    everything = model.state_dict()
    layers = len(model.cell_list)
    grid = (HEIGHT // PATCH, WIDTH // PATCH)
    h = [clip.new_zeros(B, N, *grid) for _ in range(layers)]
    c = [clip.new_zeros(B, N, *grid) for _ in range(layers)]
    m = clip.new_zeros(B, N, *grid)
    predictions: list[Tensor] = []
    cosines = []
    for t in range(T_IN + T_OUT - 1):
        share = clip.new_tensor([row[t] for row in truth]).view(B, 1, 1, 1)
        real = fold(clip[:, t])
        x = share * real + (1 - share) * (predictions[-1] if predictions else real)
        for layer in range(layers):
            prefix = f"cell_list.{layer}."
            weights = {key.removeprefix(prefix): value for key, value in everything.items() if key.startswith(prefix)}
            from_x = gates(weights, "conv_x", x, "i f g i2 f2 g2 o")
            from_h = gates(weights, "conv_h", h[layer], "i f g o")
            from_m = gates(weights, "conv_m", m, "i f g")
            delta_c = (from_x["i"] + from_h["i"]).sigmoid() * (from_x["g"] + from_h["g"]).tanh()
            c[layer] = (from_x["f"] + from_h["f"] + 1).sigmoid() * c[layer] + delta_c
            delta_m = (from_x["i2"] + from_m["i"]).sigmoid() * (from_x["g2"] + from_m["g"]).tanh()
            m = (from_x["f2"] + from_m["f"] + 1).sigmoid() * m + delta_m
            both = torch.cat((c[layer], m), dim=1)
            o = (from_x["o"] + from_h["o"] + gates(weights, "conv_o", both, "o")["o"]).sigmoid()
            h[layer] = o * F.conv2d(both, weights["conv_last.weight"]).tanh()
            x = h[layer]
            if "adapter.weight" in everything:
                u, v = (F.conv2d(delta, everything["adapter.weight"]).flatten(2) for delta in (delta_c, delta_m))
                cosine = (u * v).sum(2) / (u.square().sum(2) * v.square().sum(2)).sqrt()
                cosines.append(cosine.abs().mean())
        predictions.append(F.conv2d(x, everything["conv_last.weight"]))
    wanted = torch.stack([fold(clip[:, t]) for t in range(1, T_IN + T_OUT)])
    stacked = torch.stack(predictions)
    return stacked, (stacked - wanted).square().mean(), float(sum(cosines) / len(cosines)) if cosines else 0.0


@pytest.fixture
def clip() -> Tensor:
    return torch.rand(B, T_IN + T_OUT, HEIGHT, WIDTH, CHANNELS, generator=torch.Generator().manual_seed(0))


def build(*, layer_norm: bool, memory_decoupling: bool) -> PredRNN:
    torch.manual_seed(1)
    shape = (HEIGHT, WIDTH, CHANNELS)
    model = PredRNN(
        (T_IN, *shape),
        (T_OUT, *shape),
        hidden=(N, N, N),
        patch_size=PATCH,
        layer_norm=layer_norm,
        memory_decoupling=memory_decoupling,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms start as the identity, which would hide a mistake in their gain or shift.
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("memory_decoupling", [False, True])
@pytest.mark.parametrize("kind", ["free", "scheduled", "reverse_scheduled"])
def test_rollout_and_losses_follow_the_equations(
    clip: Tensor, layer_norm: bool, memory_decoupling: bool, kind: str
) -> None:
    # In float64, so that only mistakes make a difference.
    model, clip = build(layer_norm=layer_norm, memory_decoupling=memory_decoupling).double(), clip.double()
    context, target = clip[:, :T_IN], clip[:, T_IN:]
    mask = None
    truth = [[1.0] * T_IN + [0.0] * (T_OUT - 1)] * B
    if kind == "scheduled":
        mask = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
        truth = [[1.0] * T_IN + row for row in mask.tolist()]
    if kind == "reverse_scheduled":
        mask = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0, 0.0]])
        truth = [[1.0, *row] for row in mask.tolist()]
    with torch.no_grad():
        patches, mse, decoupling = brute_force(model, clip, truth)
        for form in (False, True):
            model.plain = form
            outputs = model.step_outputs(context, target, mask)
            assert outputs.shape == (B, T_IN + T_OUT - 1, HEIGHT, WIDTH, CHANNELS)
            folded = torch.stack([fold(outputs[:, t]) for t in range(outputs.shape[1])])
            torch.testing.assert_close(folded, patches, rtol=1e-10, atol=1e-10)
            losses = model.losses(context, target, mask)
            torch.testing.assert_close(losses["mse"], mse, rtol=1e-10, atol=1e-10)
            assert ("decoupling" in losses) == memory_decoupling
            if memory_decoupling:
                assert losses["decoupling"].item() == pytest.approx(0.1 * decoupling, rel=1e-10)
            if kind == "free":
                torch.testing.assert_close(model(context), outputs[:, T_IN - 1 :], rtol=1e-10, atol=1e-10)


def test_reverse_flags_in_testing_are_a_free_rollout(clip: Tensor) -> None:
    model = build(layer_norm=False, memory_decoupling=False)
    context, target = clip[:, :T_IN], clip[:, T_IN:]
    mask = torch.tensor([1.0] * (T_IN - 1) + [0.0] * (T_OUT - 1)).expand(B, -1)
    with torch.no_grad():
        free = model.step_outputs(context)
        torch.testing.assert_close(model.step_outputs(context, target, mask), free)
        torch.testing.assert_close(model.step_outputs(context, target, torch.zeros(B, T_OUT - 1)), free)
    with pytest.raises(ValueError, match="mask needs a target"):
        model.step_outputs(context, None, mask)


def test_a_cell_with_zero_weights_only_forgets() -> None:
    cell = SpatioTemporalLSTMCell(3, N, (5, 5), kernel_size=3, layer_norm=False)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
        h, c, m = (torch.rand(1, N, 5, 5) for _ in range(3))
        step = cell(torch.rand(1, 3, 5, 5), h, c, m)
    kept = torch.sigmoid(torch.tensor(1.0))
    torch.testing.assert_close(step.cell, kept * c)
    torch.testing.assert_close(step.memory, kept * m)
    assert step.hidden.abs().max() == 0
    assert step.delta_cell.abs().max() == step.delta_memory.abs().max() == 0


def test_decoupling_loss_is_one_for_parallel_and_zero_for_orthogonal_increments() -> None:
    model = build(layer_norm=False, memory_decoupling=True)
    with torch.no_grad():
        model.adapter.weight.copy_(torch.eye(N)[:, :, None, None])
        delta = torch.randn(3, N, 4, 4)
        assert model.decoupling_loss(delta, -2 * delta).item() == pytest.approx(1, abs=1e-6)
        left, right = torch.randn(3, N, 4, 4), torch.randn(3, N, 4, 4)
        left[..., 2:], right[..., :2] = 0, 0
        assert model.decoupling_loss(left, right).item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="memory_decoupling=True"):
        build(layer_norm=False, memory_decoupling=False).decoupling_loss(delta, delta)


def test_training_uses_the_flags_of_the_schedule(clip: Tensor) -> None:
    model = build(layer_norm=False, memory_decoupling=False)
    context, target = clip[:, :T_IN], clip[:, T_IN:]
    truth = model.losses(context, target, torch.ones(B, T_OUT - 1))["mse"]
    free = model.losses(context, target)["mse"]
    assert not torch.isclose(truth, free)
    # The first of very many steps reads the truth with a probability of 1 - 2e-9 per flag.
    first = model.training_loss(context, target, step=0, total_steps=10**9)["mse"]
    last = model.training_loss(context, target, step=9, total_steps=10)["mse"]
    torch.testing.assert_close((first, last), (truth, free))


def test_every_second_step_trains_on_reversed_clips(clip: Tensor) -> None:
    model = build(layer_norm=False, memory_decoupling=True)
    model.time_reversed = True
    context, target = clip[:, :T_IN], clip[:, T_IN:]
    flipped = clip.flip(1)
    forth, back = model.losses(context, target), model.losses(flipped[:, :T_IN], flipped[:, T_IN:])
    assert not torch.isclose(forth["mse"], back["mse"])
    for step, expected in ((98, forth), (99, back)):  # late in the schedule: no truth is read
        torch.testing.assert_close(model.training_loss(context, target, step=step, total_steps=100), expected)


def test_an_upstream_configuration_sets_its_options() -> None:
    model = build(layer_norm=True, memory_decoupling=True)
    config = {
        "num_hidden": f"{N},{N},{N}",
        "filter_size": 5,
        "patch_size": PATCH,
        "layer_norm": 1,
        "stride": 1,
        "img_width": WIDTH,
        "img_channel": CHANNELS,
        "input_length": T_IN,
        "total_length": T_IN + T_OUT,
        "decouple_beta": 0.25,
        "reverse_scheduled_sampling": 1,
    }
    shapes = {"input_shape": (T_IN, HEIGHT, WIDTH, CHANNELS), "target_shape": (T_OUT, HEIGHT, WIDTH, CHANNELS)}
    loaded = load_upstream(config, model.state_dict(), **shapes).eval()
    context = torch.rand(1, T_IN, HEIGHT, WIDTH, CHANNELS)
    assert torch.equal(loaded(context), model(context))
    from_trainer = load_upstream(Namespace(**config), {"net_param": model.state_dict()}, **shapes).eval()
    assert torch.equal(from_trainer(context), model(context))
    assert (loaded.decoupling_weight, loaded.schedule.kind) == (0.25, "reverse_scheduled")
    with pytest.raises(ValueError, match="total_length is 9, expected 7"):
        load_upstream({**config, "total_length": 9}, model.state_dict(), **shapes)
