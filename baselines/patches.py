"""Frames folded into channels, with or without a small convolutional stem before the folding.

PredRNN and E3D-LSTM run on these patches. A roll-out reads frames, emits frames and reads those at the next
step. Folding is lossless, so without a stem the whole roll-out stays in patch space: a clip is folded once and
unfolded once. With a stem the roll-out goes through pixels, because an emitted frame must pass the stem before
it is read.
"""

from torch import Tensor, nn

from baselines.shapes import require_divisible

# The stem halves the grid twice.
STEM_STRIDE = 4
LEAKY_SLOPE = 0.2


def patchify(clip: Tensor, patch_size: int) -> Tensor:
    """Returns a clip (B, T, H, W, C) as patches (T, B, F, h, w) with F = C p^2, h = H/p, w = W/p.

    Pixel (dy, dx) of a patch, channel c, becomes channel (dy p + dx) C + c. The reordering is a strided view;
    elements are moved once, where the channels are merged.
    """
    p = patch_size
    b, t, height, width, c = clip.shape
    cut = clip.reshape(b, t, height // p, p, width // p, p, c)
    return cut.permute(1, 0, 3, 5, 6, 2, 4).flatten(2, 4)


def unpatchify(patches: Tensor, patch_size: int) -> Tensor:
    """Returns patches (T, B, F, h, w) as a clip (B, T, H, W, C): the inverse of `patchify`."""
    p = patch_size
    t, b, channels, h, w = patches.shape
    cut = patches.reshape(t, b, p, p, channels // p**2, h, w)
    return cut.permute(1, 0, 5, 2, 6, 3, 4).reshape(b, t, h * p, w * p, channels // p**2)


class PatchCodec(nn.Module):
    """Converts frames to the patches that a recurrent core reads, and back.

    `open` and `close` are applied once to whole clips; `encode` and `decode` to the frames read and emitted at
    each step.

    Source: patches are `reshape_patch` of the PredRNN code (github.com/thuml/predrnn-pytorch). The stem is
    our reconstruction: the published SEVIR sizes of PredRNN and E3D-LSTM need F = 1024 on a 12 x 12 grid and
    about 5000 further weights per model, and no source gives the layers.
    """

    def __init__(self, family: str, frame_shape: tuple[int, int, int], *, patch_size: int, stem_channels: int) -> None:
        """Builds a codec for frames of shape (H, W, C); no stem if `stem_channels` is 0.

        Raises:
            ValueError: A grid size is not divisible by the patch (times the stride of the stem).
        """
        super().__init__()
        height, width, channels = frame_shape
        if patch_size < 1 or stem_channels < 0:
            raise ValueError(
                f"{family}: patch_size must be positive and stem_channels not negative, "
                f"got {patch_size} and {stem_channels}"
            )
        stride = patch_size * (STEM_STRIDE if stem_channels else 1)
        require_divisible(family, "height", height, stride)
        require_divisible(family, "width", width, stride)
        self.patch_size = patch_size
        self.patch_channels = (stem_channels or channels) * patch_size**2
        self.grid = (height // stride, width // stride)
        self.stem: nn.Sequential | None = None
        self.head: nn.Sequential | None = None
        if stem_channels:
            self.stem = nn.Sequential(
                nn.Conv2d(channels, stem_channels, 3, stride=2, padding=1),
                nn.LeakyReLU(LEAKY_SLOPE),
                nn.Conv2d(stem_channels, stem_channels, 3, stride=2, padding=1),
                nn.LeakyReLU(LEAKY_SLOPE),
            )
            self.head = nn.Sequential(
                nn.Upsample(scale_factor=2, mode="nearest"),
                nn.Conv2d(stem_channels, stem_channels, 3, padding=1),
                nn.LeakyReLU(LEAKY_SLOPE),
                nn.Upsample(scale_factor=2, mode="nearest"),
                nn.Conv2d(stem_channels, channels, 3, padding=1),
            )

    def open(self, clip: Tensor) -> Tensor:
        """Returns a clip (B, T, H, W, C), time first, in the space that steps read from and emit to."""
        return patchify(clip, self.patch_size if self.stem is None else 1)

    def close(self, frames: Tensor) -> Tensor:
        """Returns the frames that steps emitted, time first, as a clip (B, T, H, W, C)."""
        return unpatchify(frames, self.patch_size if self.stem is None else 1)

    def encode(self, frames: Tensor) -> Tensor:
        """Returns the patches (N, F, h, w) of N opened frames."""
        if self.stem is None:
            return frames
        return patchify(self.stem(frames).permute(0, 2, 3, 1).unsqueeze(1), self.patch_size).squeeze(0)

    def decode(self, patches: Tensor) -> Tensor:
        """Returns the N opened frames of patches (N, F, h, w)."""
        if self.head is None:
            return patches
        return self.head(unpatchify(patches.unsqueeze(0), self.patch_size).squeeze(1).permute(0, 3, 1, 2))
