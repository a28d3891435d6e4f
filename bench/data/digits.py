"""Images of handwritten digits, the bodies of N-body MNIST and MovingMNIST, from wherever there are some."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from bench.errors import ConfigError, DataError

SIZE = 28
"""Height and width of a digit's image in pixels, as in MNIST."""
MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz"
"""LeCun, Cortes and Burges' training images, at PyTorch's mirror."""
_IDX_IMAGES = 0x00000803
"""Magic number of an IDX file of bytes with three axes."""
_GZIP = b"\x1f\x8b"
# The 8x8 images of scikit-learn become 20x20 within 28x28: the proportions of MNIST.
_SMALL_RANGE, _ZOOM, _MARGIN = 16, 2.5, 4
_SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


def load_digits(source: str | Path) -> np.ndarray:
    """Returns images `(N,28,28)`, uint8, white on black.

    Args:
        source: `sklearn` for the 1,797 images that come with scikit-learn, enlarged; `mnist` for the 60,000 training
            images of MNIST, downloaded once into a cache folder; else an IDX file of images such as
            `t10k-images-idx3-ubyte.gz`, or a folder with one or more of them.

    Raises:
        ConfigError: scikit-learn is not installed.
        DataError: no such file, not an IDX file of 28x28 images, or the download failed.
    """
    if str(source) == "sklearn":
        return _sklearn_digits()
    path = _downloaded() if str(source) == "mnist" else Path(source).expanduser()
    files = sorted(path.glob("*images-idx3-ubyte*")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise DataError(
            f"digits {str(source)!r}: expected 'sklearn', 'mnist', an IDX file of images such as "
            "train-images-idx3-ubyte.gz, or a folder with one; found no such file"
        )
    return np.concatenate([_read_idx(file) for file in files])


def digits_of_splits(count: int) -> dict[str, range]:
    """Returns which of `count` digits each of train, val and test may use: no digit is in two of them.

    Raises:
        DataError: too few digits for three splits.
    """
    train, val = round(_SHARES["train"] * count), round(_SHARES["val"] * count)
    ranges = {"train": range(train), "val": range(train, train + val), "test": range(train + val, count)}
    if not all(ranges.values()):
        raise DataError(f"{count} digits are too few for three splits of different digits; expected 10 or more")
    return ranges


def _sklearn_digits() -> np.ndarray:
    try:
        from sklearn import datasets
    except ModuleNotFoundError as error:
        raise ConfigError(
            "digits 'sklearn' need scikit-learn: pip install 'earthbench[digits]'. Or give 'mnist', or an IDX file"
        ) from error
    from scipy.ndimage import zoom

    small = datasets.load_digits().images
    large = zoom(small, (1, _ZOOM, _ZOOM), order=3, mode="nearest", grid_mode=True)
    codes = np.clip(np.rint(large * (255 / _SMALL_RANGE)), 0, 255).astype(np.uint8)
    return np.pad(codes, ((0, 0), (_MARGIN, _MARGIN), (_MARGIN, _MARGIN)))


def _downloaded() -> Path:
    import platformdirs

    from bench.data.weights import fetch_weights

    return fetch_weights(MNIST, Path(platformdirs.user_cache_dir("earthbench")) / "digits").path


def _read_idx(path: Path) -> np.ndarray:
    try:
        content = path.read_bytes()
        if content[:2] == _GZIP:
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not readable: {error}") from error
    header = struct.unpack(">4I", content[:16]) if len(content) >= 16 else (0, 0, 0, 0)
    magic, count, height, width = header
    if magic != _IDX_IMAGES or (height, width) != (SIZE, SIZE) or len(content) != 16 + count * SIZE * SIZE:
        raise DataError(
            f"{path}: expected an IDX file of 28x28 images (magic {_IDX_IMAGES:#x}), found magic {magic:#x}, "
            f"{count} images of {height}x{width} and {len(content)} bytes"
        )
    return np.frombuffer(content, np.uint8, offset=16).reshape(count, SIZE, SIZE)
