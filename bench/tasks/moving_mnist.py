"""MovingMNIST: two digits that move in straight lines between walls.

Sources: Srivastava et al. 2015 (data); Gao et al. 2022, Earthformer (10 -> 10 frames, 8,100 / 900 / 1,000 sequences).
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from bench.api import Palette, Shape, Split
from bench.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor

    from bench.data.moving_mnist.dataset import MovingMnistSequences

WHITE = 255.0
_NOMINAL_SIZE = 64


class MovingMnist(Task):
    """MovingMNIST: 10 frames in, 10 frames out (64x64, two digits).

    The authors' splits of the one official file: its last 1,000 sequences are the test, a tenth of the others, drawn
    with a fixed seed, the validation.  Others train on generated sequences and test on all 10,000 (`split=all`): their
    figures are of another test.  Time is counted in frames.
    """

    name: ClassVar[str] = "moving_mnist"
    units: ClassVar[str] = "brightness 0..255"
    published_sequences: ClassVar[dict[str, int]] = {"train": 8_100, "val": 900, "test": 1_000}
    timeless: ClassVar[bool] = True
    palette: ClassVar[Palette] = Palette(colours="gray", levels=tuple(range(0, 256, 15)), first_row="upper")
    data_verbs: ClassVar[dict[str, str]] = {"make": "bench.data.mnist:MakeMoving"}
    selection_fields: ClassVar[frozenset[str]] = frozenset({"test_count"})

    t_in: int = Field(10, ge=1, description="frames of the context")
    t_out: int = Field(10, ge=1, description="frames of the target")
    test_count: int = Field(1_000, ge=1, description="sequences at the end of mnist_test_seq.npy that are the test")

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Returns the scores of the paper's table, in the paper's convention, on its 0-1 scale."""
        return {"frames": {"convention": "upstream", "scale": WHITE, "t_out": self.t_out}}

    @property
    def input_shape(self) -> Shape:
        """Returns `(T_in, H, W, 1)`."""
        return (self.t_in, *self.frame_size, 1)

    @property
    def target_shape(self) -> Shape:
        """Returns `(T_out, H, W, 1)`."""
        return (self.t_out, *self.frame_size, 1)

    @cached_property
    def frame_size(self) -> tuple[int, int]:
        """Returns `(H, W)` of the files, or 64x64 without files."""
        from bench.data.moving_mnist.dataset import mapped, present_file

        path = present_file(self.data_root) if self.data_root is not None else None
        if path is None:
            return _NOMINAL_SIZE, _NOMINAL_SIZE
        height, width = mapped(path).shape[2:]
        return height, width

    @property
    def cadence_minutes(self) -> float:
        """Returns 1, as frames have no physical time."""
        return 1.0

    def sequences(self, split: Split) -> MovingMnistSequences:
        """Returns the stored sequences of a split."""
        from bench.data.moving_mnist.dataset import MovingMnistSequences

        assert self.data_root is not None
        return MovingMnistSequences(
            self.data_root, split=split, t_in=self.t_in, t_out=self.t_out, test_count=self.test_count
        )

    def normalise(self, physical: Tensor) -> Tensor:
        """Returns brightness on the 0-1 scale, float32."""
        return physical.float() / WHITE

    def denormalise(self, normalised: Tensor) -> Tensor:
        """Returns brightness 0..255, float32, for the 0-1 scale."""
        return normalised.float() * WHITE
