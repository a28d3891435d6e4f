"""N-body MNIST: three digits that attract one another, a chaotic system with known energy.

Source: Gao et al. 2022, Earthformer (10 -> 10 frames, 20,000 / 1,000 / 1,000 sequences).
"""

from __future__ import annotations

import itertools
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from bench.api import Palette, Shape, Split
from bench.data.nbody_mnist.simulation import SUB_STEPS, System
from bench.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor

    from bench.data.nbody_mnist.dataset import NBodySequences
    from bench.data.report import Advance, Report

WHITE = 255.0


class NBodyMnist(Task):
    """N-body MNIST: 10 frames in, 10 frames out (64x64, three digits under mutual attraction).

    The authors' files hold draws, from which frames are made when they are read: the same physics, not rounded to
    bytes.  The authors' splits share digits; `earthbench data make nbody_mnist` gives each split its own, and has
    options for other systems: frames then have the number, size and distance in time that the data have.  Time is
    counted in frames.
    """

    name: ClassVar[str] = "nbody_mnist"
    units: ClassVar[str] = "brightness 0..255"
    published_sequences: ClassVar[dict[str, int]] = {"train": 20_000, "val": 1_000, "test": 1_000}
    timeless: ClassVar[bool] = True
    palette: ClassVar[Palette] = Palette(colours="gray", levels=tuple(range(0, 256, 15)), first_row="upper")
    data_verbs: ClassVar[dict[str, str]] = {
        "make": "bench.data.mnist:MakeNBody",
        "fetch": "bench.data.author_archives:FetchNBody",
    }

    t_in: int = Field(10, ge=1, description="frames of the context")
    t_out: int = Field(10, ge=1, description="frames of the target")
    rescale_01: bool = Field(
        True, description="models see 0..1, as in the released config; the paper's models saw 0..255 (false)"
    )

    @cached_property
    def system(self) -> System:
        """Returns the system that the data are from; without data, the paper's system."""
        from bench.data.nbody_mnist.draws import read_system

        return (read_system(self.data_root) if self.data_root is not None else None) or System()

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Returns the scores of the paper's table, in the paper's convention on its 0-1 scale, and errors of energy.

        Pooled frames have no energy: they are too coarse to find digits in.
        """
        frames = {"frames": {"convention": "upstream", "scale": WHITE, "t_out": self.t_out}}
        if self.system.pool:
            return frames
        other = {} if self.system.sub_steps == SUB_STEPS else {"sub_steps": self.system.sub_steps}
        return {**frames, "energy": {"t_out": self.t_out, **other}}

    @property
    def input_shape(self) -> Shape:
        """Returns `(T_in, H, W, 1)`."""
        return (self.t_in, self.system.frame_size, self.system.frame_size, 1)

    @property
    def target_shape(self) -> Shape:
        """Returns `(T_out, H, W, 1)`."""
        return (self.t_out, self.system.frame_size, self.system.frame_size, 1)

    @property
    def cadence_minutes(self) -> float:
        """Returns 1, as frames have no physical time."""
        return 1.0

    def sequences(self, split: Split) -> NBodySequences:
        """Returns the stored sequences of a split; `.energy` is that of the true system at each frame."""
        from bench.data.nbody_mnist.dataset import NBodySequences

        assert self.data_root is not None
        return NBodySequences(self.data_root, split=split, t_in=self.t_in, t_out=self.t_out)

    def describe_data(self, *, read_everything: bool = False, advance: Advance | None = None) -> Report:
        """Returns a report on the data under the data root, their problems, and which splits share digits."""
        report = super().describe_data(read_everything=read_everything, advance=advance)
        splits: tuple[Split, ...] = ("train", "val", "test")
        read = [split for split in splits if split in report.facts["splits"]]
        for first, second in itertools.combinations(read, 2):
            shared = len(self._digits_used(first) & self._digits_used(second))
            if shared:
                report.remarks.append(f"{first} and {second} share {shared} digits (as in the authors' files)")
        return report

    def _digits_used(self, split: Split) -> frozenset[int]:
        from bench.data.nbody_mnist.dataset import NBodySequences

        source = self.dataset(split).source
        assert isinstance(source, NBodySequences)
        return source.digits_used

    def normalise(self, physical: Tensor) -> Tensor:
        """Returns brightness as models see it, float32: on the 0-1 scale, or unchanged."""
        return physical.float() / WHITE if self.rescale_01 else physical.float()

    def denormalise(self, normalised: Tensor) -> Tensor:
        """Returns brightness 0..255, float32."""
        return normalised.float() * WHITE if self.rescale_01 else normalised.float()
