"""The hyperparameters of Earthformer, under the names of the authors' code, with the paper's settings as defaults."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from earthformer.patterns import CrossPattern, SelfPattern, Size3, cross_pattern, self_pattern

PADDING_TYPES = ("ignore", "zeros", "nearest")
Z_INIT_METHODS = ("zeros", "nearest_interp", "last", "mean")
Patterns = str | Sequence[str] | None


def as_scale(scale: int | Sequence[int]) -> Size3:
    """Returns a down-sampling factor per axis: int s is (1, s, s), two values are (1, a, b), three stay.

    Raises:
        ValueError: another number of values.
    """
    if isinstance(scale, int):
        return (1, scale, scale)
    if len(scale) == 2:
        return (1, scale[0], scale[1])
    if len(scale) == 3:
        return (scale[0], scale[1], scale[2])
    raise ValueError(f"scale: expected an integer or two or three of them, found {scale!r}")


def _per_level(name: str, value: Any, levels: int, *, depth: int) -> list[Any]:
    """Returns the entries of `value`, one per level, if lists are nested `depth` deep; else `value` for every level.

    Raises:
        ValueError: the number of entries is not that of levels.
    """
    inner = value
    for _ in range(depth):
        inner = inner[0] if isinstance(inner, list | tuple) and inner else None
    if not isinstance(inner, list | tuple):
        return [value] * levels
    if len(value) != levels:
        raise ValueError(f"{name}: expected one entry for each of {levels} levels, found {len(value)}")
    return list(value)


@dataclass(frozen=True, kw_only=True)
class Options:
    """All hyperparameters of an Earthformer except the shapes; the defaults work for any shape.

    Attributes:
        base_units: channels of the finest level; with stage ``conv`` a multiple of 16.
        block_units: channels of every level, by default `base_units` times max(`downsample`) ** `scale_alpha`
            per level.
        scale_alpha: exponent of the growth of the channels.
        num_heads: attention heads at every level.
        attn_drop: dropout of attention weights.
        proj_drop: dropout after the projections of attention layers.
        ffn_drop: dropout inside and after feed-forward layers.
        downsample: factor between levels: s for (1, s, s), or one factor for each of T, H, W.
        downsample_type: only ``patch_merge``.
        upsample_type: only ``upsample``.
        upsample_kernel_size: kernel of the convolutions after up-sampling between levels.
        enc_depth: blocks per level of the encoder.
        enc_attn_patterns: name of the encoder's pattern, or one name per level; None for the explicit lists
            below.
        enc_cuboid_size: cuboids (T, H, W), one per layer, or a list of those per level.
        enc_cuboid_strategy: strategies likewise.
        enc_shift_size: shifts likewise.
        enc_use_inter_ffn: a feed-forward layer after each attention layer rather than after each block.
        dec_depth: blocks per level of the decoder.
        dec_cross_start: finest level with cross-attention.
        dec_self_attn_patterns: as `enc_attn_patterns`, for the decoder's self-attention.
        dec_self_cuboid_size: as `enc_cuboid_size`.
        dec_self_cuboid_strategy: as `enc_cuboid_strategy`.
        dec_self_shift_size: as `enc_shift_size`.
        dec_cross_attn_patterns: name of the cross-attention pattern, or one per level; None for the explicit
            lists.
        dec_cross_cuboid_hw: cuboids (H, W), one per layer, or a list of those per level.
        dec_cross_cuboid_strategy: strategies likewise.
        dec_cross_shift_hw: shifts likewise.
        dec_cross_n_temporal: numbers of cuboids along time likewise.
        dec_cross_last_n_frames: attend only to that many last frames of the memory.
        dec_use_inter_ffn: as `enc_use_inter_ffn`.
        dec_hierarchical_pos_embed: add position embeddings after every up-sampling.
        dec_use_first_self_attn: self-attention before the first cross-attention of the coarsest level.
        z_init_method: where the decoder starts: ``zeros`` (position embeddings only), or the coarsest memory's frames
            resized (``nearest_interp``), its ``last`` frame or its ``mean``.
        num_global_vectors: global vectors, 0 for none.
        use_dec_self_global: whether the decoder's self-attention has global vectors too.
        dec_self_update_global: whether it passes its updated vectors to the next blocks of the level.
        use_dec_cross_global: whether cross-attention reads global vectors.
        use_global_vector_ffn: feed-forward layers for global vectors.
        use_global_self_attn: whether global vectors attend to one another.
        separate_global_qkv: separate projections for attention to and from global vectors.
        global_dim_ratio: channels of a global vector over those of a token; other than 1 needs
            `separate_global_qkv`.
        initial_downsample_type: ``conv`` or ``stack_conv``.
        initial_downsample_activation: activation of the first and last stage.
        initial_downsample_scale: factor of ``conv``: s, two for H, W, or three.
        initial_downsample_conv_layers: convolutions of the first stage ``conv``.
        final_upsample_conv_layers: convolutions of the last stage ``conv``.
        initial_downsample_stack_conv_num_layers: steps of ``stack_conv``.
        initial_downsample_stack_conv_dim_list: channels of each step, the last one `base_units` (all, by
            default).
        initial_downsample_stack_conv_downscale_list: spatial factor of each step.
        initial_downsample_stack_conv_num_conv_list: convolutions of each step.
        ffn_activation: activation of the feed-forward layers.
        gated_ffn: gated feed-forward layers.
        norm_layer: ``layer_norm`` or ``rms_norm``.
        padding_type: ``zeros``, ``ignore`` or ``nearest``: what fills cuboids at the border.
        pos_embed_type: ``t+h+w`` or ``t+hw``.
        checkpoint_level: 0 keeps all activations, 1 recomputes feed-forward layers, 2 attention layers too.
        use_relative_pos: relative position bias.
        self_attn_use_final_proj: projection after self-attention.
        attn_linear_init_mode: initialisation of projections to queries, keys and values, "0" or "1".
        ffn_linear_init_mode: initialisation of feed-forward layers and final projections, "0" or "1".
        conv_init_mode: initialisation of up-sampling convolutions, "0".
        down_up_linear_init_mode: initialisation of patch merging and the last projection, "0" or "1".
        norm_init_mode: initialisation of norms, "0".
    """

    base_units: int = 64
    block_units: Sequence[int] | None = None
    scale_alpha: float = 1.0
    num_heads: int = 4
    attn_drop: float = 0.1
    proj_drop: float = 0.1
    ffn_drop: float = 0.1
    downsample: int | Sequence[int] = 2
    downsample_type: str = "patch_merge"
    upsample_type: str = "upsample"
    upsample_kernel_size: int = 3
    enc_depth: Sequence[int] = (4, 4)
    enc_attn_patterns: Patterns = "axial"
    enc_cuboid_size: Sequence[Any] = ((4, 4, 4), (4, 4, 4))
    enc_cuboid_strategy: Sequence[Any] = (("l", "l", "l"), ("d", "d", "d"))
    enc_shift_size: Sequence[Any] = ((0, 0, 0), (0, 0, 0))
    enc_use_inter_ffn: bool = True
    dec_depth: Sequence[int] = (4, 4)
    dec_cross_start: int = 0
    dec_self_attn_patterns: Patterns = "axial"
    dec_self_cuboid_size: Sequence[Any] = ((4, 4, 4), (4, 4, 4))
    dec_self_cuboid_strategy: Sequence[Any] = (("l", "l", "l"), ("d", "d", "d"))
    dec_self_shift_size: Sequence[Any] = ((1, 1, 1), (0, 0, 0))
    dec_cross_attn_patterns: Patterns = "cross_1x1"
    dec_cross_cuboid_hw: Sequence[Any] = ((4, 4), (4, 4))
    dec_cross_cuboid_strategy: Sequence[Any] = (("l", "l", "l"), ("d", "l", "l"))
    dec_cross_shift_hw: Sequence[Any] = ((0, 0), (0, 0))
    dec_cross_n_temporal: Sequence[Any] = (1, 2)
    dec_cross_last_n_frames: int | None = None
    dec_use_inter_ffn: bool = True
    dec_hierarchical_pos_embed: bool = False
    dec_use_first_self_attn: bool = False
    z_init_method: str = "zeros"
    num_global_vectors: int = 8
    use_dec_self_global: bool = False
    dec_self_update_global: bool = True
    use_dec_cross_global: bool = False
    use_global_vector_ffn: bool = False
    use_global_self_attn: bool = False
    separate_global_qkv: bool = False
    global_dim_ratio: int = 1
    initial_downsample_type: str = "conv"
    initial_downsample_activation: str = "leaky"
    initial_downsample_scale: int | Sequence[int] = 2
    initial_downsample_conv_layers: int = 2
    final_upsample_conv_layers: int = 1
    initial_downsample_stack_conv_num_layers: int = 1
    initial_downsample_stack_conv_dim_list: Sequence[int] | None = None
    initial_downsample_stack_conv_downscale_list: Sequence[int] = (1,)
    initial_downsample_stack_conv_num_conv_list: Sequence[int] = (2,)
    ffn_activation: str = "gelu"
    gated_ffn: bool = False
    norm_layer: str = "layer_norm"
    padding_type: str = "zeros"
    pos_embed_type: str = "t+h+w"
    checkpoint_level: int = 0
    use_relative_pos: bool = True
    self_attn_use_final_proj: bool = True
    attn_linear_init_mode: str = "0"
    ffn_linear_init_mode: str = "0"
    conv_init_mode: str = "0"
    down_up_linear_init_mode: str = "0"
    norm_init_mode: str = "0"

    def __post_init__(self) -> None:
        """Refuses values that contradict one another.

        Raises:
            ValueError: lists that differ in levels, or a value that is not implemented.
        """
        if len(self.enc_depth) != len(self.dec_depth) or not len(self.enc_depth):
            raise ValueError(
                f"dec_depth: expected as many levels as enc_depth={list(self.enc_depth)}, found {list(self.dec_depth)}"
            )
        levels, block_units = len(self.enc_depth), self.block_units
        if block_units is not None and (len(block_units) != levels or block_units[0] != self.base_units):
            raise ValueError(
                f"block_units: expected {levels} entries starting with {self.base_units}, found {list(block_units)}"
            )
        for name, known in (
            ("downsample_type", ("patch_merge",)),
            ("upsample_type", ("upsample",)),
            ("padding_type", PADDING_TYPES),
            ("z_init_method", Z_INIT_METHODS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, found {getattr(self, name)!r}")
        if self.global_dim_ratio != 1 and not self.separate_global_qkv:
            raise ValueError(f"global_dim_ratio: expected 1 without separate_global_qkv, found {self.global_dim_ratio}")
        if self.num_global_vectors < 0:
            raise ValueError(f"num_global_vectors: expected 0 or more, found {self.num_global_vectors}")

    @property
    def units(self) -> list[int]:
        """Channels of every level, fine to coarse."""
        if self.block_units is not None:
            return list(self.block_units)
        growth = max(as_scale(self.downsample)) ** self.scale_alpha
        return [self.base_units * int(growth**level) for level in range(len(self.enc_depth))]

    def self_patterns(self, part: str, shapes: Sequence[Sequence[int]]) -> list[SelfPattern]:
        """Returns the layers of each level's self-attention, given the levels' shapes (T, H, W, C).

        Args:
            part: ``enc`` or ``dec_self``.
            shapes: shapes of the encoder's levels, for the decoder too: checkpoints were trained that way.

        Raises:
            ValueError: an unknown pattern, or lists that do not fit the number of levels.
        """
        if (names := self._pattern_names(part, len(shapes))) is not None:
            return [self_pattern(name, shape) for name, shape in zip(names, shapes, strict=True)]
        lists = [
            _per_level(f"{part}_{field}", getattr(self, f"{part}_{field}"), len(shapes), depth=2)
            for field in ("cuboid_size", "cuboid_strategy", "shift_size")
        ]
        return [SelfPattern(*layers) for layers in zip(*lists, strict=True)]

    def cross_patterns(self, shapes: Sequence[Sequence[int]]) -> list[CrossPattern]:
        """Returns the layers of each level's cross-attention, given the shapes (T, H, W, C) of the memories.

        Raises:
            ValueError: an unknown pattern, or lists that do not fit the number of levels.
        """
        if (names := self._pattern_names("dec_cross", len(shapes))) is not None:
            return [cross_pattern(name, shape) for name, shape in zip(names, shapes, strict=True)]
        fields = {"cuboid_hw": 2, "shift_hw": 2, "cuboid_strategy": 2, "n_temporal": 1}
        lists = [
            _per_level(f"dec_cross_{field}", getattr(self, f"dec_cross_{field}"), len(shapes), depth=depth)
            for field, depth in fields.items()
        ]
        return [CrossPattern(*layers) for layers in zip(*lists, strict=True)]

    def _pattern_names(self, part: str, levels: int) -> list[str] | None:
        names = getattr(self, f"{part}_attn_patterns")
        if names is None or isinstance(names, str):
            return names if names is None else [names] * levels
        if len(names) != levels:
            raise ValueError(
                f"{part}_attn_patterns: expected one entry for each of {levels} levels, found {len(names)}"
            )
        return list(names)

    @property
    def qkv_bias(self) -> bool:
        """Whether queries, keys and values have biases: possible in the authors' layers, never used by their models."""
        return False

    @property
    def qk_scale(self) -> float | None:
        """Factor of the scores, None for 1/sqrt(head size); never set in the authors' models."""
        return None


def full_signature(model: type) -> inspect.Signature:
    """Returns the signature of a model's constructor with ``**options`` spelled out.

    Keywords come from the constructors of the class and its bases, then from the fields of `Options`.
    """
    named: dict[str, inspect.Parameter] = {}
    for cls in model.__mro__:
        own = list(inspect.signature(vars(cls)["__init__"]).parameters.values())[1:] if "__init__" in vars(cls) else []
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in own) and own:
            break
        for parameter in own:
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
                named.setdefault(parameter.name, parameter)
    for field in dataclasses.fields(Options):
        keyword = inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type
        )
        named.setdefault(field.name, keyword)
    return inspect.Signature(list(named.values()))
