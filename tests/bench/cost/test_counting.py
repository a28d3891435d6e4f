from __future__ import annotations

import contextlib
import dataclasses

import pytest
import torch
from torch import Tensor, nn

import bench
from bench import registry
from bench.cost import count_model, counting, measure_speed
from bench.errors import ContractError, NotCountableError

HEADS, TOKENS, WIDTH = 4, 64, 16


class _Net(nn.Module):
    """A model whose forward is given as a function; it has one parameter, so that it has a device."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.function = forward

    def forward(self, context: Tensor) -> Tensor:
        return self.function(context) * self.weight


def _fused(x: Tensor) -> Tensor:
    q = x.reshape(1, TOKENS, HEADS, WIDTH).transpose(1, 2)
    return nn.functional.scaled_dot_product_attention(q, q, q)


def _plain(x: Tensor) -> Tensor:
    q = x.reshape(1, TOKENS, HEADS, WIDTH).transpose(1, 2)
    return torch.softmax(q @ q.transpose(-1, -2) * WIDTH**-0.5, -1) @ q


@pytest.mark.parametrize("attention", [_fused, _plain])
def test_fused_and_plain_attention_count_the_same_products(attention) -> None:
    cost = count_model(_Net(attention), (TOKENS, HEADS, WIDTH, 1))
    assert cost.gmacs * 1e9 == 2 * HEADS * TOKENS * TOKENS * WIDTH
    assert cost.torch_gmacs * 1e9 == 2 * HEADS * TOKENS * TOKENS * WIDTH
    assert cost.gflops == 2 * cost.gmacs


def test_a_convolution_counts_its_multiply_adds() -> None:
    conv = nn.Conv3d(2, 5, 3, padding=1)
    net = _Net(lambda x: conv(x.permute(0, 4, 1, 2, 3)))
    net.conv = conv
    cost = count_model(net, (4, 8, 8, 2))
    assert cost.gmacs * 1e9 == 4 * 8 * 8 * 2 * 5 * 27


def test_an_unknown_operation_fails_the_count() -> None:
    with pytest.raises(ContractError, match="aten::fft_fft2"):
        count_model(_Net(lambda x: torch.fft.fft2(x.squeeze(-1)).real), (2, 8, 8, 1))


def test_an_untraceable_model_is_a_contract_error() -> None:
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("needs a licence")

    with pytest.raises(ContractError, match="needs a licence"):
        count_model(_Net(broken), (2, 8, 8, 1))


def test_a_model_is_counted_under_its_reference_formulation() -> None:
    class Fast(_Net):
        plain = False

        @contextlib.contextmanager
        def reference(self):
            self.plain = True
            yield
            self.plain = False

        def forward(self, context: Tensor) -> Tensor:
            return _plain(context) if self.plain else context * self.weight

    model = Fast(None)
    assert count_model(model, (TOKENS, HEADS, WIDTH, 1)).gmacs > 0 and not model.plain


def _both_ways(model: nn.Module, shape, monkeypatch: pytest.MonkeyPatch):
    quick = count_model(model, shape)
    with monkeypatch.context() as patched:

        def unavailable():
            raise NotImplementedError

        patched.setattr(counting, "shapes_only", unavailable)
        return quick, count_model(model, shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.names("model"))
def test_counting_by_shapes_equals_counting_a_real_forecast(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model_class = registry.find("model", name).load()
    model = model_class((4, 32, 32, 1), (3, 32, 32, 1), **getattr(model_class, "presets", {}).get("tiny", {}))
    if getattr(model, "uncountable", ""):
        with pytest.raises(NotCountableError):
            count_model(model, (4, 32, 32, 1))
        return
    quick, real = _both_ways(model, (4, 32, 32, 1), monkeypatch)
    # counts of operations without multiply-adds may differ if random numbers are drawn
    assert dataclasses.replace(quick, uncounted={}) == dataclasses.replace(real, uncounted={})


CONVOLUTIONS = {
    "1d": (nn.Conv1d(2, 4, 3, padding=1, groups=2), (2, 16)),
    "2d": (nn.Conv2d(2, 4, (3, 5), stride=(1, 2), dilation=2), (2, 16, 16)),
    "3d": (nn.Conv3d(2, 4, (1, 3, 3)), (2, 4, 8, 8)),
    "same": (nn.Conv2d(2, 4, 3, padding="same"), (2, 8, 8)),
    "circular": (nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), (2, 8, 8)),
    "transposed 1d": (nn.ConvTranspose1d(2, 4, 4, stride=2), (2, 8)),
    "transposed 2d": (nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1), (2, 8, 8)),
    "transposed 3d": (nn.ConvTranspose3d(2, 4, 2, groups=2, dilation=2), (2, 4, 8, 8)),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_every_convolution_is_counted_without_arithmetic(kind: str, monkeypatch) -> None:
    layer, shape = CONVOLUTIONS[kind]
    quick, real = _both_ways(layer, shape, monkeypatch)
    assert quick == real and quick.gmacs > 0


def test_a_data_dependent_model_is_counted_with_a_real_forecast() -> None:
    class Decides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3)

        def forward(self, context: Tensor) -> Tensor:
            x = context.flatten(0, 1).permute(0, 3, 1, 2)
            return self.conv(x) if bool((x + 1).mean() > 0.5) else x

    assert count_model(Decides(), (1, 8, 8, 1)).gmacs * 1e9 == 36 * 9


@pytest.mark.parametrize("name", ["unet", "convlstm", "rainformer"])
def test_the_models_of_the_tables_are_counted_without_arithmetic(name: str, monkeypatch) -> None:
    traced = []
    analyse = counting._fvcore_analysis
    monkeypatch.setattr(counting, "_fvcore_analysis", lambda *given: traced.append(1) or analyse(*given))
    bench.count(name, bench.load_task("icar_enso"))
    assert traced == [1]


def test_counting_preserves_mode_and_statistics() -> None:
    model = bench.load_model("unet", bench.load_task("sevir_lr"), channels=[4], center_channels=8).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    count_model(model, (7, 128, 128, 1))
    assert model.training and all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_unet_has_the_published_size() -> None:
    cost = bench.count("unet", bench.load_task("sevir"))
    assert cost.parameters == 16_556_044
    assert cost.gmacs == pytest.approx(32.80, abs=0.005)


def test_speed_names_its_hardware() -> None:
    speed = measure_speed(bench.load_model("persistence", bench.load_task("sevir_lr")), (7, 128, 128, 1))
    assert speed.latency_s > 0 and speed.device == "cpu" and speed.threads == torch.get_num_threads()
