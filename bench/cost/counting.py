"""Parameters and multiply-adds of one forecast, by fvcore, with torch's own counter as second opinion.

Both count what a forecast calls, which needs the shapes of its tensors and, for most models, none of their values.

The papers' GFLOPS are fvcore totals at batch 1: one multiply-add counts once.  We call that number GMACs.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import math
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.api import HasReference, Shape, model_traits
from bench.cost.shapes_only import shapes_only
from bench.errors import ContractError, NotCountableError, did_you_mean, one_message

with warnings.catch_warnings():  # it compiles a function as it is imported, which users can do nothing about
    warnings.filterwarnings("ignore", ".*torch.jit.script", FutureWarning)
    from fvcore.nn import FlopCountAnalysis

# Operations that count as free: element-wise arithmetic, comparisons, reductions, pooling, random numbers, look-ups
# and shapes.  The papers' totals leave them out too.  Any other operation that fvcore does not know needs a handle
# below, or the count fails: an unknown kernel must not pass as free.
_WITHOUT_MACS = """
    __and__ __lshift__ __or__ __rshift__ __xor__ abs adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
    add add_ addcmul all amax amin any arange argmax avg_pool2d avg_pool3d baddbmm bernoulli_ bitwise_and
    bitwise_and_ bitwise_or bitwise_xor bitwise_xor_ broadcast_tensors bucketize ceil celu clamp clamp_
    clamp_max clamp_min clone constant_pad_nd copy_ cos cos_ cumsum detach div div_ dropout dropout_ elu empty
    eq erf erfinv_ exp exp_ expm1 eye feature_dropout fill_ flip floor floor_divide fmod full full_like gather
    ge gelu gelu_ glu gt hardsigmoid hardswish hardtanh hardtanh_ im2col index index_add index_put_ index_select
    isnan le leaky_relu leaky_relu_ lerp lift_fresh linspace log log1p log_ log_softmax logical_and logical_not
    logical_or logsumexp lt masked_fill masked_fill_ max max_pool2d max_pool3d maximum mean meshgrid min minimum
    mish movedim mul mul_ nan_to_num ne neg new_full new_zeros norm normal_ one_hot ones ones_like pad
    pixel_shuffle pixel_unshuffle pow prelu prod rand rand_like randint randn randn_like reciprocal relu relu6
    relu_ remainder repeat repeat_interleave roll round rrelu_ rsqrt rsub scatter scatter_ select_scatter selu
    sigmoid sigmoid_ sign silu silu_ sin sin_ slice_scatter softmax softplus sort sqrt sqrt_ square std sub sub_
    sum take_along_dim tanh tanh_ threshold topk tril triu trunc unflatten unfold uniform_ var var_mean view_as
    where zero_ zeros zeros_like
"""
UNCOUNTED_ALLOWED = frozenset(f"aten::{operator}" for operator in _WITHOUT_MACS.split())


@dataclass(frozen=True)
class Cost:
    """The cost of one forecast at batch 1."""

    parameters: int
    trainable_parameters: int
    gmacs: float
    """fvcore total / 1e9, multiply-add = 1: what the papers print as GFLOPS (exceptions are noted in the tables)."""
    gflops: float
    """2 x gmacs: floating-point operations proper."""
    torch_gmacs: float
    """torch's FlopCounterMode / 2e9: leaves out norms and up-sampling, so a little lower."""
    by_operator: dict[str, float]
    """GMACs by kind of operation."""
    uncounted: dict[str, int]
    """Calls of element-wise and other operations that count as nothing."""

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON types."""
        return asdict(self)


def count_model(model: nn.Module, input_shape: Shape) -> Cost:
    """Returns the cost of one forecast, on the model's device, in eval mode; the model's mode is restored.

    A model with a `reference()` context manager is counted under it: published totals are those of the plain
    formulation, not of a faster one.

    Raises:
        NotCountableError: the model's `uncountable` says why it cannot be counted.
        ContractError: the model does not trace, or uses an operation without a counting rule.
    """
    if why := model_traits(model).uncountable:
        raise NotCountableError(f"{type(model).__name__} cannot be counted: {why}")
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    context = torch.zeros((1, *input_shape), device=device)
    was_training = model.training
    model.eval()
    try:
        with _plain_formulation(model), _without_gradients(model), sdpa_kernel(SDPBackend.MATH):
            analysis, second_opinion = _analyses(model, context)
    finally:
        model.train(was_training)
    by_operator, uncounted = _known_counts(analysis, type(model).__name__)
    parameters = {id(p): p for p in model.parameters()}.values()
    gmacs = sum(by_operator.values())
    return Cost(
        parameters=sum(p.numel() for p in parameters),
        trainable_parameters=sum(p.numel() for p in parameters if p.requires_grad),
        gmacs=gmacs,
        gflops=2 * gmacs,
        torch_gmacs=second_opinion,
        by_operator=by_operator,
        uncounted=uncounted,
    )


def _analyses(model: nn.Module, context: Tensor) -> tuple[FlopCountAnalysis, float]:
    """Returns fvcore's analysis and torch's count in GMACs, without doing the arithmetic if shapes suffice."""
    try:
        # On a copy, because fvcore does not remove its hooks if a trace fails; it shares the values, which none reads.
        values = itertools.chain(model.parameters(), model.buffers())
        copied = copy.deepcopy(model, {id(tensor): tensor for tensor in values})
        with shapes_only(), FlopCounterMode(display=False) as counter:
            analysis = _fvcore_analysis(copied, context)
    except Exception:  # the model needs values: run it for real
        analysis = _fvcore_analysis(model, context)
        with FlopCounterMode(display=False) as counter:
            model(context)
    return analysis, counter.get_total_flops() / 2e9


def _plain_formulation(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    return model.reference() if isinstance(model, HasReference) else contextlib.nullcontext()


@contextlib.contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """Disables gradients, those of parameters included: torch's counter asks each of them for its function."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        with torch.no_grad():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _fvcore_analysis(model: nn.Module, context: Tensor) -> FlopCountAnalysis:
    """Returns fvcore's analysis of one traced forecast.

    Raises:
        ContractError: the model does not trace.
    """
    analysis = FlopCountAnalysis(model, context)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    for operator, handle in _HANDLES.items():
        analysis.set_op_handle(operator, handle)
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)  # fvcore traces with it
            analysis.total()
    except Exception as error:
        raise ContractError(f"{type(model).__name__} cannot be traced for counting: {error}") from error
    return analysis


def _known_counts(analysis: FlopCountAnalysis, name: str) -> tuple[dict[str, float], dict[str, int]]:
    """Returns GMACs by kind of operation and the calls of operations that count as nothing.

    Raises:
        ContractError: an operation has no count and is not known to be free.
    """
    uncounted = dict(sorted(analysis.unsupported_ops().items()))
    unknown = [operator for operator in uncounted if operator not in UNCOUNTED_ALLOWED]
    if unknown:
        lines = [f"{operator} ({uncounted[operator]} calls)" for operator in unknown]
        raise ContractError(
            one_message(f"{name} uses operations that have no count and are not element-wise:", lines)
            + "\nWrite the plain formulation under the model's `reference()`, or give the operation a handle in "
            f"bench/cost/counting.py. {did_you_mean(unknown[0], _HANDLES)}"
        )
    totals = analysis.by_operator()
    return {kind: count / 1e9 for kind, count in sorted(totals.items()) if count}, uncounted


def _shape(value: Any) -> list[int]:
    return list(value.type().sizes())


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Counts q k^T and the weighted sum of v: softmax is element-wise and counts nothing."""
    *batch, queries, width = _shape(inputs[0])
    keys, value_width = _shape(inputs[2])[-2:]
    return Counter({"attention": math.prod(batch) * queries * keys * (width + value_width)})


def _baddbmm_macs(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    batch, rows, inner = _shape(inputs[1])
    return Counter({"bmm": batch * rows * inner * _shape(inputs[2])[-1]})


def _norm_macs(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    # As fvcore counts an affine layer norm: five operations per element.
    return Counter({"norm": 5 * math.prod(_shape(inputs[0]))})


def _convolution_mode_macs(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Counts a convolution whose padding is a string, such as "same"."""
    return Counter({"conv": math.prod(_shape(outputs[0])) * math.prod(_shape(inputs[1])[1:])})


_HANDLES = {
    "aten::_convolution_mode": _convolution_mode_macs,
    "aten::scaled_dot_product_attention": _attention_macs,
    "aten::baddbmm": _baddbmm_macs,
    "aten::rms_norm": _norm_macs,
}
