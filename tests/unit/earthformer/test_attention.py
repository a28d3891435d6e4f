"""Cuboid attention against an independent oracle that loops over tokens, and the fast path against the plain one."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from earthformer.attention import CuboidSelfAttention
from earthformer.cross_attention import CuboidCrossAttention

DIM, HEADS = 8, 2


def spread(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter (norms and biases too) values that matter, in float64."""
    module = module.double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.5 * noise + (1.0 if parameter.dim() == 1 else 0.0))
    return module


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nearest_sources(length: int, padded: int) -> list[int]:
    return [math.floor(index * length / padded) for index in range(padded)]


class Grid:
    """Where each token of a padded and shifted grid stands: an oracle written from the definition, cell by cell."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        sizes: tuple[int, int, int],
        strategy: str,
        shift: tuple[int, int, int],
        padded: tuple[int, int, int],
        t_left: int = 0,
    ) -> None:
        self.cells: list[dict[str, Any]] = []
        for place in itertools.product(*(range(n) for n in padded)):
            inside, cuboid, region = [], [], []
            for axis in range(3):
                n, b, s = padded[axis], sizes[axis], shift[axis]
                count = n // b
                p = place[axis]
                inside.append(p % b if strategy[axis] == "l" else p // count)
                cuboid.append(p // b if strategy[axis] == "l" else p % count)
                region.append(0 if s == 0 else (2 if p >= n - s else (1 if p >= n - b else 0)))
            unshifted = tuple((p + s) % n for p, s, n in zip(place, shift, padded, strict=True))
            source = (unshifted[0] - t_left, unshifted[1], unshifted[2])
            real = all(0 <= p < n for p, n in zip(source, shape, strict=True))
            self.cells.append(
                {
                    "cuboid": tuple(cuboid),
                    "inside": tuple(inside),
                    "region": tuple(region),
                    "padded": unshifted,
                    "source": source if real else None,
                }
            )
        self.ordered = sorted(self.cells, key=lambda cell: (cell["cuboid"], cell["inside"]))


def attend(q: Tensor, keys: list[tuple[float, Tensor]]) -> Tensor:
    """Softmax over (score, value) pairs; nothing allowed gives zero."""
    if not keys:
        return torch.zeros_like(q)
    weights = torch.softmax(torch.stack([torch.as_tensor(score) for score, _ in keys]), dim=0)
    return sum((w * value for w, (_, value) in zip(weights, keys, strict=True)), torch.zeros_like(keys[0][1]))


def heads_of(x: Tensor, index: int, groups: int, size: int) -> list[Tensor]:
    """Split a vector of `groups` x HEADS x `size` channels and return head `index` of each group."""
    return [x[(g * HEADS + index) * size : (g * HEADS + index + 1) * size] for g in range(groups)]


def self_attention_oracle(layer: CuboidSelfAttention, x: Tensor, g: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """One sample, token by token, from the definition."""
    shape = tuple(x.shape[:3])
    d = DIM // HEADS
    scale = layer.scale
    sizes, shift = [], []
    for axis in range(3):
        clipped = shape[axis] <= layer.cuboid_size[axis]
        sizes.append(shape[axis] if clipped else layer.cuboid_size[axis])
        shift.append(0 if clipped or layer.strategy[axis] == "d" else layer.shift_size[axis])
    padded = tuple(-(-n // b) * b for n, b in zip(shape, sizes, strict=True))
    normed = layer.norm(x)
    if layer.padding_type == "nearest":
        source = [nearest_sources(n, m) for n, m in zip(shape, padded, strict=True)]
        normed = normed[source[0]][:, source[1]][:, :, source[2]]
        shape = padded
    grid = Grid(shape, tuple(sizes), "".join(layer.strategy), tuple(shift), padded)
    zero = torch.zeros(DIM, dtype=x.dtype)
    tokens = [normed[cell["source"]] if cell["source"] is not None else zero for cell in grid.ordered]
    volume = math.prod(sizes)
    qkv = [layer.qkv(token) for token in tokens]
    gn = None if g is None else layer.global_vec_norm(g)
    dg = layer.global_head_size
    # Projections of each token and of each vector, once.
    separate = layer.separate_global_qkv
    if gn is not None and separate:
        seen_q, seen_kv = [layer.l2g_q_net(token) for token in tokens], [layer.l2g_global_kv_net(v) for v in gn]
        read_k, read_v = [layer.g2l_k_net(token) for token in tokens], [layer.g2l_v_net(token) for token in tokens]
    elif gn is not None:
        own = [layer.global_qkv(vector) for vector in gn]
    out_tokens: list[Tensor] = []
    ignore = layer.padding_type == "ignore"
    for i, cell in enumerate(grid.ordered):
        merged = []
        for head in range(HEADS):
            q = heads_of(qkv[i], head, 3, d)[0]
            keys = []
            for j, other in enumerate(grid.ordered):
                if other["cuboid"] != cell["cuboid"] or other["region"] != cell["region"]:
                    continue
                if ignore and (other["source"] is None or cell["source"] is None):
                    continue
                _, k, v = heads_of(qkv[j], head, 3, d)
                score = scale * (q @ k)
                if layer.use_relative_pos:
                    # Places in the clipped cuboid index the corner of the configured cuboid's table.
                    score = (
                        score
                        + layer.relative_position_bias_table[
                            configured_row(layer.cuboid_size, i % volume, j % volume), head
                        ]
                    )
                keys.append((score, v))
            if gn is not None:
                for index in range(len(gn)):
                    if separate:
                        q_g = heads_of(seen_q[i], head, 1, d)[0]
                        k, v = heads_of(seen_kv[index], head, 2, d)
                    else:
                        q_g = q
                        _, k, v = heads_of(own[index], head, 3, d)
                    keys.append((scale * (q_g @ k), v))
            merged.append(attend(torch.zeros(d, dtype=x.dtype), keys))
        token = torch.cat(merged)
        out_tokens.append(layer.proj(token) if layer.use_final_proj else token)
    out = torch.zeros(*padded, DIM, dtype=x.dtype)
    for cell, token in zip(grid.ordered, out_tokens, strict=True):
        out[cell["padded"]] = token
    if layer.padding_type == "nearest":
        back = [nearest_sources(m, n) for n, m in zip(x.shape[:3], padded, strict=True)]
        out = out[back[0]][:, back[1]][:, :, back[2]]
    out = out[: x.shape[0], : x.shape[1], : x.shape[2]]
    if gn is None:
        return out, None
    updates = []
    # The mask is listed in row-major order of the shifted grid, the keys in cuboid order.
    allowed = [not ignore or cell["source"] is not None for cell in grid.cells]
    for index, vector in enumerate(gn):
        merged = []
        for head in range(HEADS):
            keys = []
            q = heads_of(layer.g2l_global_q_net(vector) if separate else own[index], head, 1, d)[0]
            for j in range(len(tokens)):
                if not allowed[j]:
                    continue
                if separate:
                    k = heads_of(read_k[j], head, 1, d)[0]
                    v = heads_of(read_v[j], head, 1, dg)[0]
                else:
                    _, k, v = heads_of(qkv[j], head, 3, d)
                keys.append((scale * (q @ k), v))
            if layer.use_global_self_attn:
                net, size = (layer.g2g_global_qkv_net, dg) if layer.separate_global_qkv else (layer.global_qkv, d)
                q = heads_of(net(vector), head, 3, size)[0]
                for other_vector in gn:
                    _, k, v = heads_of(net(other_vector), head, 3, size)
                    keys.append((scale * (q @ k), v))
            merged.append(attend(torch.zeros(dg, dtype=x.dtype), keys))
        update = torch.cat(merged)
        updates.append(layer.global_proj(update) if layer.use_final_proj else update)
    return out, torch.stack(updates)


def configured_row(size: tuple[int, int, int], a: int, b: int) -> int:
    def place(index: int) -> tuple[int, int, int]:
        return index // (size[1] * size[2]), index // size[2] % size[1], index % size[2]

    (ta, ha, wa), (tb, hb, wb) = place(a), place(b)
    rows = (ta - tb + size[0] - 1) * (2 * size[1] - 1) + ha - hb + size[1] - 1
    return rows * (2 * size[2] - 1) + wa - wb + size[2] - 1


SELF_CASES: list[dict[str, Any]] = [
    {"cuboid_size": (2, 2, 2)},
    {"cuboid_size": (2, 2, 2), "shift_size": (1, 1, 1)},
    {"cuboid_size": (2, 3, 2), "shift_size": (1, 1, 1), "padding_type": "zeros"},
    {"cuboid_size": (2, 3, 2), "shift_size": (1, 2, 1), "padding_type": "ignore"},
    {
        "cuboid_size": (2, 2, 3),
        "strategy": ("d", "d", "d"),
        "shift_size": (1, 1, 1),
        "padding_type": "ignore",
    },
    {
        "cuboid_size": (2, 2, 3),
        "strategy": ("l", "l", "d"),
        "shift_size": (1, 1, 1),
        "padding_type": "nearest",
    },
    {"cuboid_size": (2, 3, 3), "padding_type": "nearest"},
    {"cuboid_size": (4, 5, 6), "padding_type": "zeros"},
    {"cuboid_size": (2, 9, 3), "padding_type": "zeros"},
    {"cuboid_size": (2, 2, 3), "use_relative_pos": False, "qk_scale": 0.3, "qkv_bias": True},
    {"cuboid_size": (2, 3, 3), "qkv_bias": True, "padding_type": "zeros", "use_final_proj": False},
    {"cuboid_size": (3, 1, 1), "norm_layer": "rms_norm"},
]
GLOBAL_CASES: list[dict[str, Any]] = [
    {},
    {"use_global_self_attn": True},
    {"separate_global_qkv": True},
    {"separate_global_qkv": True, "use_global_self_attn": True, "global_dim_ratio": 2},
]


def make_self(case: dict[str, Any]) -> CuboidSelfAttention:
    layer = spread(CuboidSelfAttention(DIM, HEADS, **case))
    assert isinstance(layer, CuboidSelfAttention)
    return layer


@pytest.mark.parametrize("globals_case", [None, *GLOBAL_CASES], ids=str)
@pytest.mark.parametrize("case", SELF_CASES, ids=str)
def test_self_attention_is_what_the_definition_says(case: dict[str, Any], globals_case: dict[str, Any] | None) -> None:
    options = dict(case)
    if globals_case is not None:
        options.update(globals_case, use_global_vector=True)
    layer = make_self(options)
    x = random(2, 3, 4, 3, DIM)
    g = None if globals_case is None else random(2, 2, layer.global_head_size * HEADS, seed=2)
    with torch.no_grad():
        results = [layer(x) if g is None else layer(x, g)]
        with layer.reference():
            results.append(layer(x) if g is None else layer(x, g))
        for sample in range(1):
            expected, expected_g = self_attention_oracle(layer, x[sample], None if g is None else g[sample])
            for result in results:
                tokens, vectors = (result, None) if g is None else result
                torch.testing.assert_close(tokens[sample], expected, rtol=1e-9, atol=1e-9)
                if expected_g is not None:
                    torch.testing.assert_close(vectors[sample], expected_g, rtol=1e-9, atol=1e-9)


def cross_attention_oracle(layer: CuboidCrossAttention, x: Tensor, mem: Tensor, g: Tensor | None) -> Tensor:
    """One sample, query by query, from the definition."""
    d, n, (bh, bw) = DIM // HEADS, layer.n_temporal, layer.cuboid_hw
    if layer.cross_last_n_frames is not None:
        mem = mem[-layer.cross_last_n_frames :]
    shift = (
        0,
        *(0 if letter == "d" else s for letter, s in zip(layer.strategy[1:], layer.shift[1:], strict=True)),
    )
    h, w = (-(-size // b) * b for size, b in zip(x.shape[1:3], (bh, bw), strict=True))
    t_x, t_mem = (-(-size // n) * n for size in (x.shape[0], mem.shape[0]))
    letters = "".join(layer.strategy)
    queries = Grid(tuple(x.shape[:3]), (t_x // n, bh, bw), letters, shift, (t_x, h, w))
    memory = Grid(
        tuple(mem.shape[:3]), (t_mem // n, bh, bw), letters, shift, (t_mem, h, w), t_left=t_mem - mem.shape[0]
    )
    normed = layer.norm(x)
    volume_x, volume_mem = (t // n * bh * bw for t in (t_x, t_mem))
    size = (layer.max_temporal_relative, bh, bw)
    out = torch.zeros_like(x)
    for i, cell in enumerate(queries.ordered):
        if cell["source"] is None:
            continue
        token = normed[cell["source"]]
        merged = []
        for head in range(HEADS):
            q = heads_of(layer.q_proj(token), head, 1, d)[0]
            keys = []
            for j, other in enumerate(memory.ordered):
                if other["cuboid"] != cell["cuboid"] or other["region"][1:] != cell["region"][1:]:
                    continue
                if other["source"] is None:
                    continue
                k, v = heads_of(layer.kv_proj(mem[other["source"]]), head, 2, d)
                score = layer.scale * (q @ k)
                if layer.use_relative_pos:
                    row = configured_row(size, i % volume_x, j % volume_mem)
                    score = score + layer.relative_position_bias_table[row, head]
                keys.append((score, v))
            for vector in () if g is None else g:
                if layer.separate_global_qkv:
                    q_g = heads_of(layer.l2g_q_net(token), head, 1, d)[0]
                    k, v = heads_of(layer.l2g_global_kv_net(vector), head, 2, d)
                else:
                    q_g, (k, v) = q, heads_of(layer.kv_proj(vector), head, 2, d)
                keys.append((layer.scale * (q_g @ k), v))
            merged.append(attend(torch.zeros(d, dtype=x.dtype), keys))
        out[cell["source"]] = layer.proj(torch.cat(merged))
    return out


CROSS_CASES: list[dict[str, Any]] = [
    {"cuboid_hw": (1, 1)},
    {"cuboid_hw": (2, 2), "n_temporal": 2, "strategy": ("l", "l", "l")},
    {"cuboid_hw": (2, 2), "n_temporal": 3, "strategy": ("d", "d", "d"), "shift_hw": (1, 1)},
    {"cuboid_hw": (2, 2), "n_temporal": 2, "strategy": ("d", "l", "l"), "shift_hw": (1, 1)},
    {"cuboid_hw": (4, 4), "n_temporal": 3, "strategy": ("l", "l", "l"), "shift_hw": (2, 2)},
    {"cuboid_hw": (3, 2), "n_temporal": 1, "strategy": ("l", "l", "l"), "shift_hw": (1, 0), "qkv_bias": True},
    {
        "cuboid_hw": (2, 2),
        "n_temporal": 4,
        "strategy": ("l", "l", "l"),
        "cross_last_n_frames": 2,
        "qkv_bias": True,
    },
    {"cuboid_hw": (1, 1), "use_relative_pos": False, "padding_type": "zeros", "cross_last_n_frames": 2},
    {"cuboid_hw": (3, 1), "shift_hw": (1, 0), "strategy": ("l", "l", "l"), "padding_type": "nearest"},
]


@pytest.mark.parametrize("globals_case", [None, {}, {"separate_global_qkv": True, "global_dim_ratio": 2}], ids=str)
@pytest.mark.parametrize("case", CROSS_CASES, ids=str)
def test_cross_attention_is_what_the_definition_says(case: dict[str, Any], globals_case: dict[str, Any] | None) -> None:
    options = {
        "max_temporal_relative": 8,
        **case,
        **(globals_case or {}),
        "use_global_vector": globals_case is not None,
    }
    layer = spread(CuboidCrossAttention(DIM, HEADS, **options))
    assert isinstance(layer, CuboidCrossAttention)
    x, mem = random(2, 4, 3, 5, DIM), random(2, 3, 3, 5, DIM, seed=2)
    if case.get("padding_type") == "nearest":
        x, mem = x[:, :, :, :4], mem[:, :, :, :4]
    g = None if globals_case is None else random(2, 2, layer.global_head_size * HEADS, seed=3)
    with torch.no_grad():
        results = [layer(x, mem, g)]
        with layer.reference():
            results.append(layer(x, mem, g))
        for sample in range(1):
            expected = cross_attention_oracle(layer, x[sample], mem[sample], None if g is None else g[sample])
            for result in results:
                torch.testing.assert_close(result[sample], expected, rtol=1e-9, atol=1e-9)


def gradients(layer: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    """Return the results of the layer and the gradients of all inputs and parameters, in float64."""
    inputs = [value.clone().requires_grad_() for value in inputs]
    layer.zero_grad()
    result = layer(*inputs)
    results = list(result) if isinstance(result, tuple) else [result]
    loss = sum((value * random(*value.shape, seed=5)).sum() for value in results)
    assert isinstance(loss, Tensor)
    loss.backward()
    found = [value.grad for value in [*inputs, *layer.parameters()]]
    return [value.detach() for value in results] + [g if g is not None else torch.zeros(()) for g in found]


@pytest.mark.parametrize("globals_case", [None, *GLOBAL_CASES], ids=str)
@pytest.mark.parametrize("case", SELF_CASES, ids=str)
def test_gradients_of_self_attention_agree_between_paths(
    case: dict[str, Any], globals_case: dict[str, Any] | None
) -> None:
    options = dict(case) if globals_case is None else {**case, **globals_case, "use_global_vector": True}
    layer = make_self(options)
    inputs = [random(2, 3, 4, 3, DIM)]
    if globals_case is not None:
        inputs.append(random(2, 2, layer.global_head_size * HEADS, seed=2))
    fast = gradients(layer, inputs)
    with layer.reference():
        plain = gradients(layer, inputs)
    torch.testing.assert_close(fast, plain, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("globals_case", [None, {}, {"separate_global_qkv": True, "global_dim_ratio": 2}], ids=str)
@pytest.mark.parametrize("case", CROSS_CASES[:7], ids=str)
def test_gradients_of_cross_attention_agree_between_paths(
    case: dict[str, Any], globals_case: dict[str, Any] | None
) -> None:
    options = {
        "max_temporal_relative": 8,
        **case,
        **(globals_case or {}),
        "use_global_vector": globals_case is not None,
    }
    layer = spread(CuboidCrossAttention(DIM, HEADS, **options))
    assert isinstance(layer, CuboidCrossAttention)
    inputs = [random(2, 4, 3, 5, DIM), random(2, 3, 3, 5, DIM, seed=2)]
    if globals_case is not None:
        inputs.append(random(2, 2, layer.global_head_size * HEADS, seed=3))
    fast = gradients(layer, inputs)
    with layer.reference():
        plain = gradients(layer, inputs)
    torch.testing.assert_close(fast, plain, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("globals_case", [None, *GLOBAL_CASES], ids=str)
@pytest.mark.parametrize("case", SELF_CASES[:6], ids=str)
def test_fused_kernel_agrees_with_the_plain_path(
    case: dict[str, Any], globals_case: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("earthformer.kernels.has_fused_attention", lambda device: True)
    options = dict(case) if globals_case is None else {**case, **globals_case, "use_global_vector": True}
    layer = make_self(options)
    inputs = [random(2, 3, 4, 3, DIM)]
    if globals_case is not None:
        inputs.append(random(2, 2, layer.global_head_size * HEADS, seed=2))
    fast = gradients(layer, inputs)
    with layer.reference():
        plain = gradients(layer, inputs)
    torch.testing.assert_close(fast, plain, rtol=1e-8, atol=1e-8)


def test_full_cuboid_is_plain_multi_head_attention() -> None:
    layer = make_self({"cuboid_size": (3, 4, 3), "use_relative_pos": False})
    plain = nn.MultiheadAttention(DIM, HEADS, bias=True, batch_first=True).double()
    with torch.no_grad():
        plain.in_proj_weight.copy_(layer.qkv.weight)
        plain.in_proj_bias.zero_()
        plain.out_proj.weight.copy_(layer.proj.weight)
        plain.out_proj.bias.copy_(layer.proj.bias)
        x = random(2, 3, 4, 3, DIM)
        tokens = layer.norm(x).flatten(1, 3)
        expected, _ = plain(tokens, tokens, tokens)
        torch.testing.assert_close(layer(x).flatten(1, 3), expected)


def test_padding_ignore_does_not_see_what_the_padding_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make_self({"cuboid_size": (2, 3, 2), "shift_size": (1, 1, 1), "padding_type": "ignore"})
    x = random(1, 3, 4, 3, DIM)
    from earthformer import cuboids

    with torch.no_grad(), layer.reference():
        expected = layer(x)
        zero_pad = cuboids.F.pad

        def noisy_pad(tensor: Tensor, amount: Any, **options: Any) -> Tensor:
            if tensor.dtype == torch.bool:
                return zero_pad(tensor, amount, **options)
            return zero_pad(tensor, amount, value=7.5)

        monkeypatch.setattr(cuboids.F, "pad", noisy_pad)
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("padding_type", ["zeros", "ignore"])
@pytest.mark.parametrize("separate", [None, False, True])
@pytest.mark.parametrize("relative", [True, False])
@given(
    shape=st.tuples(*(st.integers(1, 6) for _ in range(3))), cuboid=st.tuples(*(st.integers(1, 4) for _ in range(3)))
)
@settings(max_examples=6)
def test_leaving_padded_tokens_out_changes_nothing(
    padding_type: str,
    separate: bool | None,
    relative: bool,
    shape: tuple[int, int, int],
    cuboid: tuple[int, int, int],
) -> None:
    globals_ = {} if separate is None else {"use_global_vector": True, "separate_global_qkv": separate}
    layer = CuboidSelfAttention(DIM, HEADS, cuboid, padding_type=padding_type, use_relative_pos=relative, **globals_)
    spread(layer)
    x, g = random(2, *shape, DIM).requires_grad_(), None if separate is None else random(2, 3, DIM, seed=2)
    assert bool(layer._cut(x).parts) == any(n > b and n % b for n, b in zip(shape, cuboid, strict=True))

    def run(module: CuboidSelfAttention) -> tuple[Tensor, Tensor]:
        out = module(x, g, update_globals=False)
        out = out if separate is None else out[0]
        return out, torch.autograd.grad((out * random(*out.shape, seed=3)).sum(), x)[0]

    with layer.reference():
        expected = run(layer)
    torch.testing.assert_close(run(layer), expected)
    with torch.no_grad():
        out = layer(x, g, update_globals=False)
        torch.testing.assert_close(out if separate is None else out[0], expected[0])


def test_zeros_padding_takes_part_in_the_softmax() -> None:
    ignored = make_self({"cuboid_size": (2, 3, 2), "padding_type": "ignore"})
    padded = make_self({"cuboid_size": (2, 3, 2), "padding_type": "zeros"})
    x = random(1, 3, 4, 3, DIM)
    with torch.no_grad():
        assert not torch.allclose(ignored(x), padded(x))


def test_dead_update_of_global_vectors_costs_nothing_and_changes_nothing() -> None:
    layer = make_self({"cuboid_size": (3, 1, 1), "use_global_vector": True, "separate_global_qkv": True})
    x, g = random(1, 3, 4, 3, DIM), random(1, 2, DIM, seed=2)
    with torch.no_grad():
        tokens, vectors = layer(x, g, update_globals=False)
        torch.testing.assert_close(tokens, layer(x, g)[0])
        assert not vectors.any()


def test_mask_follows_the_grid_it_was_made_for() -> None:
    layer = make_self({"cuboid_size": (2, 2, 2), "shift_size": (1, 1, 1), "padding_type": "ignore"})
    with torch.no_grad():
        for shape in ((3, 4, 3), (4, 4, 4), (3, 4, 3)):
            x = random(1, *shape, DIM)
            fast = layer(x)
            with layer.reference():
                torch.testing.assert_close(fast, layer(x))


def test_a_mask_made_in_inference_mode_serves_training_too() -> None:
    layer = CuboidCrossAttention(DIM, HEADS, cuboid_hw=(2, 2), n_temporal=2, use_global_vector=False)
    x, mem = torch.randn(1, 3, 3, 3, DIM), torch.randn(1, 3, 3, 3, DIM)
    with torch.inference_mode():
        layer(x, mem)
    layer(x, mem).sum().backward()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 9}, "multiple of num_heads"),
        ({"padding_type": "reflect"}, "padding_type"),
        ({"strategy": ("l", "x", "l")}, "strategy"),
        ({"global_dim_ratio": 2, "use_global_vector": True}, "global_dim_ratio"),
        ({"norm_layer": "batch_norm"}, "norm_layer"),
        ({"attn_linear_init_mode": "7"}, "linear_init_mode"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CuboidSelfAttention(**{"dim": DIM, "num_heads": HEADS, **options})


def test_wrong_inputs_are_named() -> None:
    layer = CuboidSelfAttention(DIM, HEADS, use_global_vector=True)
    with pytest.raises(ValueError, match="global vectors"):
        layer(torch.zeros(1, 2, 2, 2, DIM))
    with pytest.raises(ValueError, match="expected x"):
        layer(torch.zeros(1, 2, 2, 2, DIM + 1), torch.zeros(1, 2, DIM))
    cross = CuboidCrossAttention(DIM, HEADS, cuboid_hw=(2, 2), max_temporal_relative=4, use_global_vector=False)
    x = torch.zeros(1, 2, 2, 2, DIM)
    with pytest.raises(ValueError, match="to agree"):
        cross(x, torch.zeros(1, 2, 3, 2, DIM))
    with pytest.raises(ValueError, match="max_temporal_relative"):
        cross(x, torch.zeros(1, 4, 2, 2, DIM))
    with pytest.raises(ValueError, match="n_temporal"):
        CuboidCrossAttention(DIM, HEADS, n_temporal=0)


@pytest.mark.parametrize("padding_type", ["zeros", "nearest"])
def test_padded_cross_attention_is_refused_unless_padding_is_ignored(padding_type: str) -> None:
    layer = CuboidCrossAttention(DIM, HEADS, cuboid_hw=(2, 2), padding_type=padding_type, use_global_vector=False)
    with pytest.raises(ValueError, match="ignore"):
        layer(torch.zeros(1, 2, 3, 2, DIM), torch.zeros(1, 2, 3, 2, DIM))
