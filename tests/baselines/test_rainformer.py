"""Rainformer against its equations, with attention pixel by pixel, and its balanced loss."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from baselines.rainformer import Rainformer, balanced_mae, load_upstream
from baselines.window_attention import WindowAttention

T_IN, T_OUT, SIZE = 3, 2, 32
ARGUMENTS = {"hidden": 4, "heads": (1, 2, 1, 2), "head_dim": 3, "window": 2}


def channel_attention(x: Tensor, first: torch.nn.Sequential, second: torch.nn.Sequential) -> Tensor:
    """Scales channels (N, C, H, W) by their mean and maximum."""

    def perceptron(layers: torch.nn.Sequential, pooled: Tensor) -> Tensor:
        hidden = F.relu(pooled @ layers[1].weight.T + layers[1].bias)
        return hidden @ layers[3].weight.T + layers[3].bias

    scale = perceptron(first, x.mean((2, 3))) + perceptron(second, x.flatten(2).max(2).values)
    return x * scale.sigmoid()[:, :, None, None]


def attention(layer: WindowAttention, x: Tensor) -> Tensor:
    """Attends pixel by pixel over (N, H, W, C), based on the positions of the pixels instead of masks."""
    n, height, width, _ = x.shape
    s, shift, heads, d = layer.window, layer.shift, layer.heads, layer.head_dim
    q, k, v = (x @ layer.to_qkv.weight.T).unflatten(3, (3, heads, d)).unbind(3)
    out = x.new_zeros(n, height, width, heads, d)
    for y in range(height):
        for z in range(width):
            top, left = (y - shift) // s * s + shift, (z - shift) // s * s + shift
            # A window that is cut in two by the edge attends within each part.
            rows = [row for row in range(top, top + s) if 0 <= row < height]
            columns = [column for column in range(left, left + s) if 0 <= column < width]
            for head in range(heads):
                logits, values = [], []
                for row in rows:
                    for column in columns:
                        product = (q[:, y, z, head] * k[:, row, column, head]).sum(1) / d**0.5
                        logits.append(product + layer.pos_embedding[row - y + s - 1, column - z + s - 1])
                        values.append(v[:, row, column, head])
                weights = torch.stack(logits).softmax(0)
                out[:, y, z, head] = (weights[..., None] * torch.stack(values)).sum(0)
    projected = out.flatten(3) @ layer.to_out.weight.T + layer.to_out.bias
    return channel_attention(projected.permute(0, 3, 1, 2), layer.ca.MLP1, layer.ca.MLP2).permute(0, 2, 3, 1)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("window", [1, 2, 3, 4])
def test_window_attention_equals_attention_within_windows(window: int, shifted: bool) -> None:
    torch.manual_seed(0)
    layer = WindowAttention(5, heads=2, head_dim=3, window=window, shifted=shifted)
    x = torch.randn(2, 12, 12, 5)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), attention(layer, x), rtol=1e-5, atol=1e-5)


def batch_norm(layer: torch.nn.BatchNorm2d, x: Tensor) -> Tensor:
    if layer.training:
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    else:
        mean, variance = layer.running_mean, layer.running_var
    scaled = (x - mean.view(-1, 1, 1)) / (variance.view(-1, 1, 1) + 1e-5).sqrt()
    return scaled * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)


def stage_output(stage: torch.nn.Module, x: Tensor, factor: int, skip: Tensor | None, *, up: bool) -> Tensor:
    """Returns the output of a stage for images (N, C, H, W)."""
    n, c, height, width = x.shape
    if up:
        cut = x.reshape(n, c // factor**2, factor, factor, height, width).permute(0, 1, 4, 2, 5, 3)
        folded = cut.reshape(n, c // factor**2, height * factor, width * factor)
    else:
        cut = x.reshape(n, c, height // factor, factor, width // factor, factor).permute(0, 1, 3, 5, 2, 4)
        folded = cut.reshape(n, c * factor**2, height // factor, width // factor)
    linear = stage.patch_partition.linear
    tokens = folded.permute(0, 2, 3, 1) @ linear.weight.T + linear.bias
    if skip is not None:
        tokens = torch.cat((tokens, skip.permute(0, 2, 3, 1)), dim=3)
    blocks = stage.layers[-1]
    local = tokens.permute(0, 3, 1, 2)
    for conv, norm in ((blocks[2].conv[0], blocks[2].conv[1]), (blocks[2].conv[3], blocks[2].conv[4])):
        local = F.relu(batch_norm(norm, F.conv2d(local, conv.weight, conv.bias, padding=1)))
    casa = blocks[3]
    local = channel_attention(local, casa.ca.MLP, casa.ca.MLP)
    pooled = torch.stack((local.mean(1), local.max(1).values), dim=1)
    local = local * batch_norm(casa.sa.bn, F.conv2d(pooled, casa.sa.conv.weight, padding=1)).sigmoid()
    for block in blocks[:2]:
        inner, outer = block.attention_block.fn, block.mlp_block.fn
        channels = tokens.shape[-1:]
        tokens = tokens + attention(inner.fn, F.layer_norm(tokens, channels, inner.norm.weight, inner.norm.bias))
        hidden = F.layer_norm(tokens, channels, outer.norm.weight, outer.norm.bias)
        hidden = hidden @ outer.fn.net[0].weight.T + outer.fn.net[0].bias
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        tokens = tokens + hidden @ outer.fn.net[2].weight.T + outer.fn.net[2].bias
    far = tokens.permute(0, 3, 1, 2)
    conv, norm = blocks[4].conv_1
    gates = F.conv2d(torch.cat((far, local), dim=1), conv.weight, conv.bias, padding=1)
    gates = F.layer_norm(gates, gates.shape[1:], norm.weight, norm.bias).sigmoid()
    return gates[:, : far.shape[1]] * far + gates[:, far.shape[1] :] * local


def build(grid: tuple[int, int, int] = (SIZE, SIZE, 1), **arguments: object) -> Rainformer:
    torch.manual_seed(0)
    model = Rainformer((T_IN, *grid), (T_OUT, *grid), **{**ARGUMENTS, **arguments})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "mask" not in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.add_(0.5 * torch.rand_like(buffer))
    return model


@pytest.fixture
def model() -> Rainformer:
    return build()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("grid", "arguments", "dtype"),
    [
        ((SIZE, SIZE, 1), {}, torch.float32),
        ((12, 24, 2), {"downscale": (1, 2, 2, 1), "window": 3, "layers": (4, 2, 2, 4)}, torch.float64),
        ((18, 12, 1), {"downscale": (3, 1, 2, 1), "window": 1, "hidden": 9}, torch.float64),
    ],
)
def test_forecast_follows_the_equations(
    grid: tuple[int, int, int], arguments: dict[str, object], training: bool, dtype: torch.dtype
) -> None:
    model = build(grid, **arguments).to(dtype).train(training)
    channels = grid[2]
    context = torch.rand(2, T_IN, *grid, dtype=dtype)
    downscale = arguments.get("downscale", (2, 2, 2, 2))
    exactness = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-10}
    with torch.no_grad():
        # Channels are the frames one after the other, each with all its channels.
        x = torch.stack([context[:, t, :, :, c] for t in range(T_IN) for c in range(channels)], dim=1)
        skips = []
        for stage, factor in zip(model.down, downscale, strict=True):
            x = stage_output(stage, x, factor, None, up=False)
            skips.append(x)
        for stage, factor, skip in zip(model.up, downscale[:0:-1], skips[2::-1], strict=True):
            x = stage_output(stage, x, factor, skip, up=True)
        x = stage_output(model.final, x, downscale[0], None, up=True)
        expected = torch.zeros(2, T_OUT, *grid, dtype=dtype)
        for t in range(T_OUT):
            for c in range(channels):
                expected[:, t, :, :, c] = x[:, t * channels + c]
        torch.testing.assert_close(model(context), expected, **exactness)


def test_only_the_last_group_of_a_stage_affects_the_forecast() -> None:
    model = Rainformer((1, SIZE, SIZE, 1), (1, SIZE, SIZE, 1), **ARGUMENTS, layers=(4, 2, 2, 2)).eval()
    context = torch.rand(1, 1, SIZE, SIZE, 1)
    with torch.no_grad():
        before = model(context)
        for parameter in model.down[0].layers[0].parameters():
            parameter.zero_()
        assert torch.equal(before, model(context))
        model.down[0].layers[1][4].conv_1[0].weight.zero_()
        assert not torch.equal(before, model(context))


def test_upsampling_stages_use_the_heads_of_the_deeper_stage() -> None:
    heads = (1, 2, 3, 5)
    model = Rainformer((1, SIZE, SIZE, 1), (1, SIZE, SIZE, 1), hidden=4, heads=heads, head_dim=2, window=2)
    up = [stage.layers[0][0].attention_block.fn.fn.heads for stage in (*model.up, model.final)]
    assert up == [5, 3, 2, 1]


@pytest.mark.parametrize(
    ("value", "weight"),
    [
        (0.0, 1),
        (1.999, 1),
        (2.0, 2),
        (4.999, 2),
        (5.0, 5),
        (9.999, 5),
        (10.0, 10),
        (29.999, 10),
        (30.0, 0),
        (30.001, 30),
        (80.0, 30),
    ],
)
def test_balanced_loss_is_weighted_by_the_class_of_the_target(value: float, weight: int) -> None:
    target = torch.full((2, 3), value)
    assert balanced_mae(target + 0.5, target).item() == pytest.approx(6 * 0.5 * weight, rel=1e-4)
    if value == 30:
        assert balanced_mae(target + 0.5, target, ignores_last_threshold=False).item() == pytest.approx(90)


@given(values=st.lists(st.floats(0, 100, width=32), min_size=1, max_size=20), shift=st.floats(-5, 5, width=32))
@settings(deadline=None)
def test_balanced_loss_is_additive_over_pixels(values: list[float], shift: float) -> None:
    target = torch.tensor(values)
    apart = sum(balanced_mae(pixel + shift, pixel) for pixel in target)
    torch.testing.assert_close(balanced_mae(target + shift, target), apart, rtol=1e-4, atol=1e-4)


def test_balanced_loss_refuses_mismatched_classes() -> None:
    with pytest.raises(ValueError, match="rising thresholds and one weight more"):
        balanced_mae(torch.ones(1), torch.ones(1), thresholds=(2, 1), weights=(1, 2, 3))
    with pytest.raises(ValueError, match="rising thresholds and one weight more"):
        balanced_mae(torch.ones(1), torch.ones(1), thresholds=(1, 2), weights=(1, 2))


def test_the_training_loss_is_selectable(model: Rainformer) -> None:
    model.eval()
    context, target = torch.rand(1, T_IN, SIZE, SIZE, 1), torch.rand(1, T_OUT, SIZE, SIZE, 1)
    with torch.no_grad():
        forecast = model(context)
        mse = model.training_loss(context, target, step=0, total_steps=1)
        torch.testing.assert_close(mse, (forecast - target).square().mean())
        model.loss, model.balance_thresholds = "balanced_mae", (0.2, 0.4, 0.6, 0.8)
        balanced = model.training_loss(context, target, step=0, total_steps=1)
        torch.testing.assert_close(balanced, balanced_mae(forecast, target, thresholds=(0.2, 0.4, 0.6, 0.8)))


def test_upstream_stage_names_are_accepted(model: Rainformer) -> None:
    names = {f"down.{i}": f"stage{i + 1}" for i in range(4)} | {f"up.{i}": f"stage{i + 5}" for i in range(3)}
    names["final"] = "stage8"
    weights = {}
    for key, value in model.state_dict().items():
        stage = next(stage for stage in names if key.startswith(stage))
        weights[names[stage] + key.removeprefix(stage)] = value
    config = {"cin": 3, "cout": 2, "h": SIZE, "w": SIZE, "hid": 4, "ds": (2, 2, 2, 2), "layers": (2, 2, 2, 2)}
    config |= {"heads": (1, 2, 1, 2), "hd": 3, "ws": 2}
    shapes = {"input_shape": (T_IN, SIZE, SIZE, 1), "target_shape": (T_OUT, SIZE, SIZE, 1)}
    loaded = load_upstream(config, weights, **shapes).eval()
    context = torch.rand(1, T_IN, SIZE, SIZE, 1)
    assert torch.equal(loaded(context), model.eval()(context))
    with pytest.raises(ValueError, match=r"left over: stage9\.weight"):
        load_upstream(config, {**weights, "stage9.weight": torch.ones(1)}, **shapes)
    with pytest.raises(ValueError, match="cin is 4, expected 3"):
        load_upstream({**config, "cin": 4}, weights, **shapes)
