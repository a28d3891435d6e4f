"""DGMR's whole networks against plain formulas of its description, in double precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from baselines.dgmr import discriminators
from baselines.dgmr.model import DGMR

SHAPES = ((4, 32, 64, 1), (3, 32, 64, 1))


class Weights:
    """The weights of a random network, by name; a normed weight has spectral norm 1."""

    def __init__(self, model: DGMR, *, training: bool) -> None:
        self.values, self.training = model.state_dict(), training

    def conv(self, name: str, x: Tensor) -> Tensor:
        of = F.conv3d if x.dim() == 5 else F.conv2d
        weight = self.weight(name)
        return of(x, weight, self.values.get(f"{name}.bias"), padding=weight.shape[-1] // 2)

    def weight(self, name: str) -> Tensor:
        free = self.values.get(f"{name}.weight")
        if free is not None:
            return free
        weight = self.values[f"{name}.parametrizations.weight.original"]
        return weight / torch.linalg.matrix_norm(weight.flatten(1), 2)

    def batch_norm(self, name: str, x: Tensor) -> Tensor:
        if self.training:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        else:
            mean, variance = self.values[f"{name}.running_mean"], self.values[f"{name}.running_var"]
        scale, offset = self.values[f"{name}.weight"], self.values[f"{name}.bias"]
        each = (part[:, None, None] for part in (mean, (variance + 1e-5).sqrt(), scale, offset))
        mean, spread, scale, offset = each
        return (x - mean) / spread * scale + offset

    def d_block(self, name: str, x: Tensor, *, first: bool = False, down: bool = True) -> Tensor:
        pool = (F.avg_pool3d if x.dim() == 5 else F.avg_pool2d) if down else lambda x, _: x
        y = self.conv(f"{name}.outer", self.conv(f"{name}.inner", x if first else x.relu()).relu())
        has_shortcut = f"{name}.shortcut.bias" in self.values
        assert has_shortcut == (down or y.shape[1] != x.shape[1])
        return pool(y, 2) + pool(self.conv(f"{name}.shortcut", x) if has_shortcut else x, 2)

    def g_block(self, name: str, x: Tensor, *, up: bool) -> Tensor:
        def grown(x: Tensor) -> Tensor:
            return x.repeat_interleave(2, 2).repeat_interleave(2, 3) if up else x

        y = self.conv(f"{name}.inner", grown(self.batch_norm(f"{name}.norms.0", x).relu()))
        y = self.conv(f"{name}.outer", self.batch_norm(f"{name}.norms.1", y).relu())
        return y + (self.conv(f"{name}.shortcut", grown(x)) if y.shape[1] != x.shape[1] else x)

    def l_block(self, name: str, x: Tensor) -> Tensor:
        y = self.conv(f"{name}.outer", self.conv(f"{name}.inner", x.relu()).relu())
        return y + (torch.cat((x, self.conv(f"{name}.added", x)), 1) if y.shape[1] != x.shape[1] else x)

    def attention(self, name: str, x: Tensor) -> Tensor:
        query, key, value = (self.conv(f"{name}.{part}", x).flatten(2) for part in ("query", "key", "value"))
        seen = value @ (query.mT @ key).softmax(-1).mT
        return x + self.values[f"{name}.gamma"] * self.conv(f"{name}.out", seen.unflatten(2, x.shape[2:]))

    def conv_gru(self, name: str, x: Tensor, h: Tensor) -> Tensor:
        r, u = (torch.sigmoid(self.conv(f"{name}.{gate}", torch.cat((x, h), 1))) for gate in ("reset", "update"))
        return u * h + (1 - u) * self.conv(f"{name}.candidate", torch.cat((x, r * h), 1)).relu()

    def head(self, name: str, x: Tensor) -> Tensor:
        x = x.relu().sum((2, 3))
        mean = x.mean(0) if self.training else self.values[f"{name}.norm.running_mean"]
        x = (x - mean) * self.values[f"{name}.norm.scale"] + self.values[f"{name}.norm.offset"]
        return x @ self.weight(f"{name}.score").T + self.values[f"{name}.score.bias"]


def folded(x: Tensor) -> Tensor:
    """Squares of 2 x 2 pixels of images `(N, C, H, W)` on channels."""
    count, channels, height, width = x.shape
    x = x.reshape(count, channels, height // 2, 2, width // 2, 2)
    return x.permute(0, 1, 3, 5, 2, 4).reshape(count, 4 * channels, height // 2, width // 2)


def unfolded(x: Tensor) -> Tensor:
    count, channels, height, width = x.shape
    x = x.reshape(count, channels // 4, 2, 2, height, width)
    return x.permute(0, 1, 4, 2, 5, 3).reshape(count, channels // 4, 2 * height, 2 * width)


def forecast(w: Weights, context: Tensor, noise: Tensor, *, levels: int) -> Tensor:
    """Returns a member from the noise of each sequence."""
    x = torch.cat([folded(frame.permute(0, 3, 1, 2)) for frame in context.unbind(1)])
    states = []
    for level in range(levels):
        x = w.d_block(f"generator.context.blocks.{level}", x)
        frames = x.chunk(context.shape[1])
        states.append(w.conv(f"generator.context.joins.{level}", torch.cat(frames, 1)).relu())
    z = w.conv("generator.latent.layers.0", noise)
    for layer in (1, 2, 3):
        z = w.l_block(f"generator.latent.layers.{layer}", z)
    z = w.l_block("generator.latent.layers.5", w.attention("generator.latent.layers.4", z))
    made = []
    for _ in range(SHAPES[1][0]):
        x = z
        for level in reversed(range(levels)):
            name = f"generator.sampler.levels.{level}"
            states[level] = w.conv_gru(f"{name}.cell", x, states[level])
            x = w.g_block(f"{name}.enlarge.1", w.conv(f"{name}.enlarge.0", states[level]), up=False)
            x = w.g_block(f"{name}.enlarge.2", x, up=True)
        x = w.conv("generator.sampler.head", w.batch_norm("generator.sampler.norm", x).relu())
        made.append(unfolded(x).permute(0, 2, 3, 1))
    return torch.stack(made, 1)


def spatial_score(w: Weights, future: Tensor) -> Tensor:
    """All frames are seen, as there are at most eight."""
    name, (count, t_out) = "discriminators.spatial", future.shape[:2]
    x = folded(F.avg_pool2d(future.flatten(0, 1).permute(0, 3, 1, 2), 2))
    for k in range(4):
        x = w.d_block(f"{name}.blocks.{k}", x, first=k == 0, down=k < 3)
    return w.head(f"{name}.head", x).view(count, t_out).sum(1)


def window(sequence: Tensor) -> Tensor:
    """Half the height and width, as a random window might be."""
    return sequence[:, :, 5:21, 8:40]


def temporal_score(w: Weights, sequence: Tensor) -> Tensor:
    name, count = "discriminators.temporal", len(sequence)
    frames = [folded(frame.permute(0, 3, 1, 2)) for frame in window(sequence).unbind(1)]
    x = w.d_block(f"{name}.volumes.0", torch.stack(frames, 2), first=True)
    x = w.d_block(f"{name}.volumes.1", x).transpose(1, 2)
    y = w.d_block(f"{name}.blocks.0", x.flatten(0, 1))
    y = w.d_block(f"{name}.blocks.1", y, down=False)
    return w.head(f"{name}.head", y).view(count, x.shape[1]).sum(1)


@pytest.fixture
def model() -> DGMR:
    """A tiny model with random weights and exact estimates of spectral norms."""
    torch.manual_seed(0)
    made = DGMR(*SHAPES, **DGMR.presets["tiny"]).double()
    state = made.state_dict()
    for name, value in state.items():
        if name.endswith("original"):
            u, _, v = torch.linalg.svd(value.flatten(1), full_matrices=False)
            norm = name.removesuffix("original")
            state[f"{norm}0.u"], state[f"{norm}0.v"] = u[:, 0], v[0]
        elif value.is_floating_point() and not name.endswith((".u", ".v")):
            state[name] = value + 0.3 * torch.rand_like(value)
    made.load_state_dict(state)
    return made


@pytest.mark.parametrize("training", [False, True])
def test_a_member_follows_the_equations(model: DGMR, training: bool) -> None:
    context, noise = torch.rand(2, *SHAPES[0]).double(), torch.randn(2, *model.generator.noise_shape).double()
    expected = forecast(Weights(model, training=training), context, noise, levels=3)
    with torch.no_grad():
        found = model.train(training).generator(context, noise)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(found[0], found[1]) and found.std() > 0.01


@pytest.mark.parametrize("training", [False, True])
def test_scores_and_losses_follow_the_equations(model: DGMR, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discriminators, "_random_window", window)
    context, target = (torch.rand(2, *shape).double() for shape in SHAPES)
    samples = torch.rand(2, 2, *SHAPES[1]).double()
    monkeypatch.setattr(model, "_samples", lambda context, count: samples[:count])
    w = Weights(model, training=training)

    def scores(made: Tensor) -> tuple[Tensor, Tensor]:
        futures, contexts = torch.cat((target, made)), torch.cat((context, context))
        both = spatial_score(w, futures), temporal_score(w, torch.cat((contexts, futures), 1))
        return torch.stack(both, 1).chunk(2)

    real, made = scores(samples[0])
    hinges = ((1 - real).relu() + (1 + made).relu()).mean(0)
    deceptions = -torch.stack([scores(sample)[1] for sample in samples]).mean((0, 1))
    weight = (255 * target / 10.6).clamp(1, 24)
    grid = 20 * ((samples.mean(0) - target).abs() * weight).mean()
    model.train(training)
    found = model.training_loss(context, target, step=0, total_steps=3)
    torch.testing.assert_close(torch.stack((found["spatial_hinge"], found["temporal_hinge"])), hinges)
    found = model.training_loss(context, target, step=2, total_steps=3)
    torch.testing.assert_close(torch.stack((found["spatial_deception"], found["temporal_deception"])), deceptions)
    torch.testing.assert_close(found["grid"], grid)
