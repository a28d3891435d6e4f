"""Pictures of forecasts as rows of frames, still or moving: context, target, models or members, event probabilities."""

from __future__ import annotations

import math
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bench.api import Palette
from bench.errors import ConfigError
from bench.files import replacing
from bench.tables.durations import TimeAxis
from bench.tables.look import Look, colouring, levels_of

FORMATS = (".png", ".svg", ".pdf", ".gif", ".mp4")
PRINT_DPI = 300
PRINT_WIDTH = 7.2
"""Inches, two columns of a journal: text is 6 pt or more at this width."""
PRINT: Mapping[str, Any] = {"pdf.fonttype": 42}
"""Matplotlib's settings for print: TrueType, since journals refuse Type 3 fonts."""
_MOVING_DPI = 100
_MOVING = (".gif", ".mp4")
_MEMBERS_SHOWN = 3
_FRAMES_PER_SECOND = 5
_COLUMNS = 6
_WIDEST_FRAME = 1.3  # inches
_CHARACTER, _BAR = 0.06, 0.62  # inches of a character of a row's name, and of a colour bar with its labels
_TICK = 0.018  # inches of height, for each point of its text, that a label of a colour bar takes
_TITLE = 14  # characters of a title, per inch
_NAME, _NAME_ABOVE = 16, 22  # characters of a line of a row's name, and of one above a moving panel
_COAST = "#8c8c8c"  # visible on black and on white
_PAUSE = 4  # frames that an animation holds its last one


@dataclass(frozen=True)
class Panel:
    """One row of a picture: frames `(T,H,W)`, whether they are probabilities, and the number of the first lead."""

    name: str
    frames: np.ndarray
    probability: bool = False
    first: int = 1


def panels_of(
    context: np.ndarray,
    target: np.ndarray | None,
    members: np.ndarray,
    *,
    name: str = "forecast",
    threshold: float | None = None,
    controls: tuple[float, ...] | None = None,
) -> list[Panel]:
    """Returns the rows of a forecast's picture.

    Args:
        context: `(T_in,H,W)`, physical units.
        target: `(T_out,H,W)`, if known.
        members: `(M,T_out,H,W)`; with controls `(N,M,T_out,H,W)`, whose means get a row each.
        name: Label of the row of a single member.
        threshold: Adds the share of members at or above it.
        controls: The control of each block of members.
    """
    rows = [Panel("context", context, first=1 - len(context))]
    if target is not None:
        rows.append(Panel("observed", target))
    if controls is not None:
        return rows + [
            Panel(f"n = {n:+g}" if n else "n = 0", block.mean(0)) for n, block in zip(controls, members, strict=True)
        ]
    if len(members) == 1:
        rows.append(Panel(name, members[0]))
    else:
        rows += [Panel(f"member {k + 1}", members[k]) for k in range(min(_MEMBERS_SHOWN, len(members)))]
        rows.append(Panel("mean", members.mean(0)))
    if threshold is not None:
        reached = np.where(np.isnan(members), np.nan, members >= threshold)
        rows.append(Panel(f"P(≥ {threshold:g})", reached.mean(0), probability=True))
    return rows


def draw(path: Path, panels: list[Panel], *, look: Look, cadence_minutes: float, title: str) -> Path:
    """Draws the panels as rows, or animates them side by side in a `.gif` or `.mp4`, one lead time per frame.

    Animations begin with the context in every panel.  Stills are as wide as two columns of a journal.  A `.png` has 300
    dots per inch, or 600 if frames have more cells; `.svg` and `.pdf` keep lines and the cells of frames as vectors,
    text is embedded TrueType in `.pdf` and outlines in `.svg`.

    Args:
        path: The file to write.
        panels: The rows.
        look: Look of the task.
        cadence_minutes: Time between frames.
        title: Title of the picture.

    Raises:
        ConfigError: the ending is not supported, or `.mp4` is requested and ffmpeg is not installed.
    """
    import matplotlib

    if path.suffix not in FORMATS:
        raise ConfigError(f"picture {path.name!r}: expected a name that ends in {', '.join(FORMATS)}")
    if path.suffix == ".mp4" and shutil.which("ffmpeg") is None:
        raise ConfigError("an .mp4 needs the program ffmpeg, which is not on the PATH; a .gif needs nothing more")
    matplotlib.use("agg")
    levels = look.palette.levels or levels_of([panel.frames for panel in panels if not panel.probability])
    style = _ON_SCREEN if path.suffix in _MOVING else _ON_PAPER
    beyond = _beyond(panels, look.palette, levels) if look.palette.levels else "neither"
    paint = _Paint(look, levels, TimeAxis.of(cadence_minutes, timeless=look.timeless), style, beyond)
    with replacing(path) as part, matplotlib.rc_context({**PRINT}):
        if path.suffix in _MOVING:
            _moving(part, path.suffix, panels, paint, title)
        else:
            _still(part, path.suffix, panels, paint, title)
    return path


def _beyond(panels: Sequence[Panel], palette: Palette, levels: tuple[float, ...]) -> str:
    """Returns the ends of a colour bar that have an arrow: those beyond which values lie, in a colour of their own."""
    drawn = [panel.frames for panel in panels if not panel.probability]
    # a list of colours has none for values below its levels: they are drawn as the lowest
    below = isinstance(palette.colours, str) and any((frames < levels[0]).any() for frames in drawn)
    above = any((frames >= levels[-1]).any() for frames in drawn)
    return {(True, True): "both", (True, False): "min", (False, True): "max"}.get((below, above), "neither")


@dataclass(frozen=True)
class _Style:
    """Sizes of lines and text: in inches and points of the page, or of a screen."""

    coast: float
    box: float
    label: int
    ticks: int
    characters: int
    """Of a colour bar's label, per inch."""
    image: Mapping[str, Any]
    """How `imshow` draws cells."""


_ON_PAPER = _Style(coast=0.4, box=0.6, label=7, ticks=6, characters=14, image={"interpolation": "none"})
_ON_SCREEN = _Style(coast=0.6, box=0.8, label=8, ticks=7, characters=10, image={})


class _Paint:
    """Draws single frames and the colour bars that belong to them."""

    def __init__(self, look: Look, levels: tuple[float, ...], times: TimeAxis, style: _Style, beyond: str) -> None:
        self.colours, self.norm = colouring(look.palette, levels)
        self.look, self.levels, self.times, self.style, self.beyond = look, levels, times, style, beyond

    def frame(self, axis: Any, panel: Panel, index: int) -> Any:
        """Draws a frame of a panel on an axis and returns the image."""
        from matplotlib.patches import Rectangle

        axis.set(xticks=[], yticks=[])
        shown = np.ma.masked_invalid(panel.frames[index])
        how = (
            {"cmap": "Blues", "vmin": 0, "vmax": 1} if panel.probability else {"cmap": self.colours, "norm": self.norm}
        )
        for top, bottom, left, right in (self.look.regions or {}).values():
            # visible on light and dark background
            for colour, thick in (("white", self.style.box + 1), ("black", self.style.box)):
                corner, size = (left, top), (right - left, bottom - top)
                box = Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=thick, zorder=2)
                axis.add_patch(box)
        image = axis.imshow(shown, origin=self.look.palette.first_row, **how, **self.style.image)
        if self.look.coast is not None:
            axis.plot(*self.look.coast.T, color=_COAST, linewidth=self.style.coast, scalex=False, scaley=False)
        return image

    def lead(self, panel: Panel, index: int) -> str:
        """Returns the time of a frame relative to the start."""
        return self.times.lead(panel.first + index)

    def bars(self, figure: Any, axes: Any, images: dict[bool, Any]) -> None:
        """Draws a colour bar for the field, and one for probabilities, if any."""
        height = figure.get_figheight()
        for probability, image in images.items():
            # as thick on a tall page as on a low one, with a label that wraps rather than being cut
            bar = figure.colorbar(
                image, ax=axes, shrink=min(1.0, 4 / height), aspect=25, pad=0.01,
                extend="neither" if probability else self.beyond,
                ticks=None if probability else self.levels[:: self._stride(0.9 * min(height, 4))],
            )  # fmt: skip
            text = "share of members" if probability else self.look.units
            bar.set_label(
                textwrap.fill(text, max(12, int(min(height, 4) * self.style.characters))), fontsize=self.style.label
            )
            bar.ax.tick_params(labelsize=self.style.ticks)
            bar.solids.set_edgecolor("face")  # else viewers of vectors show seams between the colours

    def _stride(self, inches: float) -> int:
        """Returns the step between labelled levels, so that labels do not overlap on a bar of this length in inches."""
        return math.ceil(len(self.levels) * _TICK * self.style.ticks / inches)

    def note(self, panels: Sequence[Panel]) -> str:
        """What the colours do not say: outlined regions, and cells without a value."""
        told = [f"Outlined: {', '.join(self.look.regions)}."] if self.look.regions else []
        if any(np.isnan(panel.frames).any() for panel in panels):
            told.append("White: no data.")
        return " ".join(told)


def _still(path: Path, suffix: str, panels: list[Panel], paint: _Paint, title: str) -> None:
    import matplotlib.pyplot as plt

    columns = max(len(shown_frames(len(panel.frames))) for panel in panels)
    height, width = panels[0].frames.shape[1:]
    names = [_wrapped(panel.name, _NAME) for panel in panels]
    longest = max(len(line) for name in names for line in name.splitlines())
    bars = len({panel.probability for panel in panels})
    side = min(_WIDEST_FRAME, (PRINT_WIDTH - 0.2 - _CHARACTER * longest - _BAR * bars) / columns)
    headings = 1 + sum(_leads(a, paint) != _leads(b, paint) for a, b in pairwise(panels))
    note = paint.note(panels)
    across = side * columns + 0.2 + _CHARACTER * longest + _BAR * bars
    title = _filled(title, across)
    figure, axes = plt.subplots(
        len(panels),
        columns,
        figsize=(
            across,
            (side * height / width + 0.03) * len(panels)
            + 0.15 * (headings + bool(note))
            + 0.15 * len(title.splitlines()),
        ),
        squeeze=False,
        layout="constrained",
    )
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    images: dict[bool, Any] = {}
    above: list[str] = []
    for row, panel, name in zip(axes, panels, names, strict=True):
        for axis in row:
            axis.set_axis_off()
        leads = _leads(panel, paint)
        for axis, index, lead in zip(row, shown_frames(len(panel.frames)), leads, strict=False):
            axis.set_axis_on()
            images[panel.probability] = paint.frame(axis, panel, index)
            if leads != above:  # once for consecutive rows with the same leads
                axis.set_title(lead, fontsize=7, pad=3)
        above = leads
        row[0].set_ylabel(name, fontsize=7, rotation=0, ha="right", va="center")
    paint.bars(figure, axes, images)
    figure.suptitle(title, fontsize=8)
    if note:
        figure.supxlabel(note, fontsize=6)
    sharp = PRINT_DPI if width <= side * PRINT_DPI else 2 * PRINT_DPI  # a dot for each cell
    figure.savefig(path, dpi=sharp, format=suffix.lstrip("."))
    plt.close(figure)


def _leads(panel: Panel, paint: _Paint) -> list[str]:
    """The times above the frames of a row."""
    return [paint.lead(panel, index) for index in shown_frames(len(panel.frames))]


def _moving(path: Path, suffix: str, panels: list[Panel], paint: _Paint, title: str) -> None:
    import matplotlib.pyplot as plt

    context = next(panel for panel in panels if panel.first < 1)
    shown = [panel for panel in panels if panel is not context]
    height, width = context.frames.shape[1:]
    across = 2.0 * len(shown) + 1.0
    above = _filled(title, across)
    lines = max(_wrapped(panel.name, _NAME_ABOVE).count("\n") for panel in shown) + above.count("\n")
    figure, axes = plt.subplots(
        1,
        len(shown),
        figsize=(across, 2.0 * height / width + 0.9 + 0.15 * lines),
        squeeze=False,
        layout="constrained",
    )
    images: dict[bool, Any] = {}
    drawn = []
    for axis, panel in zip(axes[0], shown, strict=True):
        drawn.append(paint.frame(axis, panel, 0))
        images[panel.probability] = drawn[-1]
        axis.set_title(_wrapped(panel.name, _NAME_ABOVE), fontsize=9)
    paint.bars(figure, axes, images)

    def draw_lead(lead: int) -> None:
        """Draws the frames of a lead time; leads up to 0 are the context."""
        for panel, image in zip(shown, drawn, strict=True):
            frames = panel.frames if lead > 0 else context.frames
            index = lead - (panel.first if lead > 0 else context.first)
            frame = frames[min(index, len(frames) - 1)]
            image.set_data(
                np.ma.masked_all(frame.shape) if panel.probability and lead < 1 else np.ma.masked_invalid(frame)
            )
        time = paint.times.lead(lead)
        figure.suptitle(f"{above}\n{time}" + (" (context)" if lead < 1 else ""), fontsize=9)

    last = max(panel.first + len(panel.frames) - 1 for panel in shown)
    leads = [*range(context.first, last + 1), *[last] * _PAUSE]
    try:
        (_save_gif if suffix == ".gif" else _save_film)(path, figure, draw_lead, leads, title)
    finally:
        plt.close(figure)


def _save_gif(path: Path, figure: Any, draw_lead: Callable[[int], None], leads: list[int], title: str) -> None:
    """Writes frames with one palette of 256 colours, without dithering; matplotlib's writer changes the palette.

    Palettes by population would mix the colours of a colour bar that are rare in the frames.
    """
    from PIL import Image

    frames = []
    figure.set_dpi(_MOVING_DPI)
    for lead in leads:
        draw_lead(lead)
        figure.canvas.draw()
        frames.append(Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()))
    seen = Image.fromarray(np.concatenate([np.asarray(frames[at]) for at in (0, len(frames) // 2, -1)]))
    colours = seen.quantize(method=Image.Quantize.MAXCOVERAGE, kmeans=3)
    first, *others = (frame.quantize(palette=colours, dither=Image.Dither.NONE) for frame in frames)
    duration = 1000 // _FRAMES_PER_SECOND
    first.save(path, "GIF", save_all=True, append_images=others, duration=duration, loop=0, comment=title.encode())


def _save_film(path: Path, figure: Any, draw_lead: Callable[[int], None], leads: list[int], title: str) -> None:
    from matplotlib.animation import FFMpegWriter

    # The writer infers the format from the ending, which the temporary file lacks.
    named = path.with_name(path.name + ".mp4")
    writer = FFMpegWriter(fps=_FRAMES_PER_SECOND, metadata={"title": title})
    try:
        with writer.saving(figure, named, _MOVING_DPI):
            for lead in leads:
                draw_lead(lead)
                writer.grab_frame()
        named.replace(path)
    finally:
        named.unlink(missing_ok=True)


def _wrapped(name: str, characters: int) -> str:
    """Breaks a name into lines, but no word of it; underscores of registered names separate words."""
    name = name.replace("_", " ")
    return textwrap.fill(name, max(characters, *map(len, name.split()), 1))


def _filled(title: str, inches: float) -> str:
    """Breaks the lines of a title that are too long for a width."""
    most = int(inches * _TITLE)
    return "\n".join(part for line in title.splitlines() for part in textwrap.wrap(line, most) or [""])


def shown_frames(count: int) -> list[int]:
    """Returns up to six equidistant indices of `count` frames, including the last."""
    stride = -(-count // _COLUMNS)
    return list(range((count - 1) % stride, count, stride))


def draw_forecasts(
    path: Path,
    *,
    context: np.ndarray,
    target: np.ndarray,
    forecasts: dict[str, np.ndarray],
    look: Look,
    cadence_minutes: float,
    title: str,
) -> Path:
    """Draws context, target and forecasts side by side, as `draw` does.

    Args:
        path: The file to write.
        context: Physical units `(T_in, H, W)`, first row in the south.
        target: The same, `(T_out, H, W)`.
        forecasts: The same by name, `(T_out, H, W)`.
        look: Look of the task.
        cadence_minutes: Time between frames.
        title: Title of the picture.
    """
    rows = [Panel("context", context, first=1 - len(context)), Panel("observed", target)]
    rows += [Panel(name, frames) for name, frames in forecasts.items()]
    return draw(path, rows, look=look, cadence_minutes=cadence_minutes, title=title)
