"""Forecasts as one small image, for the loggers of trainings."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bench.api import Palette
from bench.tables.look import colouring, levels_of
from bench.tables.pictures import shown_frames

_LEAST_PIXELS = 128
_LINE = 1 / 20  # height of a row's name, in widths of the image: TensorBoard shows it in half its size


def pixels_of(rows: Mapping[str, np.ndarray], palette: Palette) -> np.ndarray:
    """Returns rows of up to six frames each as one image, each row below its name, `(H,W,3)` uint8.

    Args:
        rows: Frames in physical units by name, each `(T,H,W)`.
        palette: The task's colours.
    """
    colours, norm = colouring(palette, palette.levels or levels_of([*rows.values()]))
    enlarged = max(1, -(-_LEAST_PIXELS // max(next(iter(rows.values())).shape[1:])))
    painted = []
    for frames in rows.values():
        shown = frames[shown_frames(len(frames))]
        shown = shown[:, ::-1] if palette.first_row == "lower" else shown
        bytes_ = colours(norm(np.ma.masked_invalid(shown)), bytes=True)[..., :3]
        bytes_ = bytes_.repeat(enlarged, 1).repeat(enlarged, 2)
        framed = np.pad(bytes_, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
        painted.append(np.concatenate(list(framed), axis=1))
    width = max(row.shape[1] for row in painted)
    padded = [np.pad(row, ((0, 0), (width - row.shape[1], 0), (0, 0)), constant_values=255) for row in painted]
    return np.concatenate([part for name, row in zip(rows, padded, strict=True) for part in (_words(name, width), row)])


def _words(text: str, width: int) -> np.ndarray:
    """Returns a line of text as an image, `(H,W,3)` uint8."""
    from PIL import Image, ImageDraw, ImageFont

    height = int(width * _LINE)
    line = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(line).text((2, height // 2), text, "black", ImageFont.load_default(0.8 * height), anchor="lm")
    return np.asarray(line)
