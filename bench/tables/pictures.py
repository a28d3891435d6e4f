"""Pictures of forecasts as rows of frames: context, target, models or members, chances of an event; still or moving."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import registry
from bench.api import Palette
from bench.errors import ConfigError, EarthbenchError, did_you_mean
from bench.files import replacing
from bench.tables.durations import TimeAxis

if TYPE_CHECKING:
    from bench.records.schema import RunRecord

FORMATS = (".png", ".svg", ".pdf", ".gif", ".mp4")
PRINT_DPI = 300
_MOVING = (".gif", ".mp4")
_MEMBERS_SHOWN = 3
_FRAMES_PER_SECOND = 3
_COLUMNS = 6
_LEAST_PIXELS = 128


@dataclass(frozen=True)
class Look:
    """How the frames of a task are drawn."""

    palette: Palette = field(default_factory=Palette)
    units: str = ""
    timeless: bool = False
    regions: Mapping[str, tuple[float, float, float, float]] | None = None
    """See `Task.regions`."""
    event_threshold: float | None = None
    """See `Task.event_threshold`."""

    @classmethod
    def of(cls, task: Any, colours: str | None = None) -> Look:
        """The look of a task, a class or an object, with another colour map of matplotlib's where one is named.

        Raises:
            ConfigError: no colour map has this name.
        """
        of_class = isinstance(task, type)
        palette, units = (task.palette, task.units) if of_class else (task.picture_palette, task.physical_units)
        return cls(palette, units, task.timeless, task.regions, task.event_threshold).coloured(colours)

    @classmethod
    def of_name(cls, task: str, colours: str | None = None) -> Look:
        """The same for a task's name; that of an unknown kind where its distribution is not installed here."""
        try:
            return cls.of(registry.find("task", task).load(), colours)
        except EarthbenchError as error:
            if isinstance(error, ConfigError):
                raise
            return cls().coloured(colours)

    @classmethod
    def of_record(cls, record: RunRecord, colours: str | None = None) -> Look:
        """The same for a record's task, in the units of its data where these have their own."""
        look = cls.of_name(record.task.name, colours)
        own = record.data.identity.get("units") if record.data is not None else None
        return replace(look, units=str(own[0])) if own else look

    def coloured(self, colours: str | None) -> Look:
        """The look with a named colour map at the same levels."""
        if colours is None:
            return self
        from matplotlib import colormaps

        if colours not in colormaps:
            known = sorted(name for name in colormaps if not name.endswith("_r"))
            raise ConfigError(
                f"no colour map {colours!r}. {did_you_mean(colours, known)} "
                "Monotone ones are cividis, viridis and gray."
            )
        return replace(self, palette=replace(self.palette, colours=colours))


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
    threshold: float | None = None,
    controls: tuple[float, ...] | None = None,
) -> list[Panel]:
    """Returns the rows of a forecast's picture.

    Args:
        context: `(T_in,H,W)`, physical units.
        target: `(T_out,H,W)`, where it is known.
        members: `(M,T_out,H,W)`; with controls `(N,M,T_out,H,W)`, one row of the mean for each.
        threshold: Adds the share of members at or above it.
        controls: The control of each block of members.
    """
    rows = [Panel("context", context, first=1 - len(context))]
    if target is not None:
        rows.append(Panel("target", target))
    if controls is not None:
        return rows + [Panel(f"n = {n:+g}", block.mean(0)) for n, block in zip(controls, members, strict=True)]
    if len(members) == 1:
        rows.append(Panel("forecast", members[0]))
    else:
        rows += [Panel(f"member {k + 1}", members[k]) for k in range(min(_MEMBERS_SHOWN, len(members)))]
        rows.append(Panel("mean", members.mean(0)))
    if threshold is not None:
        rows.append(Panel(f"P(>= {threshold:g})", (members >= threshold).mean(0), probability=True))
    return rows


def draw(path: Path, panels: list[Panel], *, look: Look, cadence_minutes: float, title: str) -> Path:
    """Draws the panels, a row each, or moves them in a `.gif` or `.mp4`, a lead time a frame.

    A `.png` has 300 dots per inch; `.svg` and `.pdf` keep text and lines as such.

    Args:
        path: Where to.
        panels: The rows.
        look: Of the task.
        cadence_minutes: Time between frames.
        title: Above the picture.

    Raises:
        ConfigError: the ending is none of these, or `.mp4` is asked for and ffmpeg is not installed.
    """
    import matplotlib

    if path.suffix not in FORMATS:
        raise ConfigError(f"picture {path.name!r}: expected a name that ends in {', '.join(FORMATS)}")
    if path.suffix == ".mp4" and shutil.which("ffmpeg") is None:
        raise ConfigError("an .mp4 needs the program ffmpeg, which is not on the PATH; a .gif needs nothing more")
    matplotlib.use("agg")
    levels = look.palette.levels or levels_of([panel.frames for panel in panels if not panel.probability])
    paint = _Paint(look, levels, TimeAxis.of(cadence_minutes, timeless=look.timeless))
    with replacing(path) as part:
        if path.suffix in _MOVING:
            _moving(part, path.suffix, panels, paint, title)
        else:
            _still(part, path.suffix, panels, paint, title)
    return path


class _Paint:
    """Draws single frames and the colour bars that belong to them."""

    def __init__(self, look: Look, levels: tuple[float, ...], times: TimeAxis) -> None:
        self.colours, self.norm = colouring(look.palette, levels)
        self.look, self.levels, self.times = look, levels, times

    def frame(self, axis: Any, panel: Panel, index: int) -> Any:
        """Draws a frame of a panel on an axis and returns the image."""
        from matplotlib.patches import Rectangle

        axis.set(xticks=[], yticks=[])
        shown = np.ma.masked_invalid(panel.frames[index])
        how = (
            {"cmap": "Blues", "vmin": 0, "vmax": 1} if panel.probability else {"cmap": self.colours, "norm": self.norm}
        )
        for top, bottom, left, right in (self.look.regions or {}).values():
            for colour, thick in (("white", 1.8), ("black", 0.8)):  # seen on light and dark ground
                corner, size = (left, top), (right - left, bottom - top)
                box = Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=thick, zorder=2)
                axis.add_patch(box)
        return axis.imshow(shown, origin=self.look.palette.first_row, **how)

    def lead(self, panel: Panel, index: int) -> str:
        """The time of a frame against the start."""
        return self.times.lead(panel.first + index)

    def bars(self, figure: Any, axes: Any, images: dict[bool, Any]) -> None:
        """Draws a colour bar for the field, and one for probabilities where there are any."""
        height = figure.get_figheight()
        for probability, image in images.items():
            # as thick on a tall page as on a low one, with a label that wraps rather than being cut
            bar = figure.colorbar(
                image, ax=axes, shrink=min(1.0, 4 / height), aspect=25, pad=0.01,
                ticks=None if probability else self.levels,
            )  # fmt: skip
            text = "share of members" if probability else self.look.units
            bar.set_label(textwrap.fill(text, max(12, int(min(height, 4) * 10))), fontsize=8)
            bar.ax.tick_params(labelsize=7)


def _still(path: Path, suffix: str, panels: list[Panel], paint: _Paint, title: str) -> None:
    import matplotlib.pyplot as plt

    columns = max(len(_spread(len(panel.frames))) for panel in panels)
    height, width = panels[0].frames.shape[1:]
    figure, axes = plt.subplots(
        len(panels),
        columns,
        figsize=(1.7 * columns + 2.2, (1.5 * height / width + 0.12) * len(panels) + 1.0),
        squeeze=False,
        layout="constrained",
    )
    images: dict[bool, Any] = {}
    above: list[str] = []
    for row, panel in zip(axes, panels, strict=True):
        for axis in row:
            axis.set_axis_off()
        shown = _spread(len(panel.frames))
        leads = [paint.lead(panel, index) for index in shown]
        for axis, index, lead in zip(row, shown, leads, strict=False):
            axis.set_axis_on()
            images[panel.probability] = paint.frame(axis, panel, index)
            if leads != above:  # said once for the rows that share them
                axis.set_title(lead, fontsize=8)
        above = leads
        row[0].set_ylabel(_wrapped(panel.name), fontsize=9, rotation=0, ha="right", va="center")
    paint.bars(figure, axes, images)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=PRINT_DPI, format=suffix.lstrip("."))
    plt.close(figure)


def _moving(path: Path, suffix: str, panels: list[Panel], paint: _Paint, title: str) -> None:
    import matplotlib.pyplot as plt
    from matplotlib.animation import FFMpegWriter, FuncAnimation, PillowWriter

    height, width = panels[0].frames.shape[1:]
    lines = max(_wrapped(panel.name).count("\n") for panel in panels)
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(2.0 * len(panels) + 1.8, 2.0 * height / width + 1.0 + 0.15 * lines),
        squeeze=False,
        layout="constrained",
    )
    images: dict[bool, Any] = {}
    updates: list[Callable[[int], None]] = []

    def updating(axis: Any, panel: Panel, image: Any) -> Callable[[int], None]:
        def update(step: int) -> None:
            index = min(step, len(panel.frames) - 1)  # the context stays on its last frame while the forecast runs
            index = len(panel.frames) - 1 if panel.first < 1 else index
            image.set_data(np.ma.masked_invalid(panel.frames[index]))
            axis.set_title(f"{_wrapped(panel.name)}\n{paint.lead(panel, index)}", fontsize=8)

        return update

    for axis, panel in zip(axes[0], panels, strict=True):
        image = paint.frame(axis, panel, 0)
        images[panel.probability] = image
        updates.append(updating(axis, panel, image))
    paint.bars(figure, axes, images)
    figure.suptitle(title, fontsize=10)

    def draw_step(step: int) -> list[Any]:
        for update in updates:
            update(step)
        return []

    steps = max(len(panel.frames) for panel in panels if panel.first >= 1)
    writer = (PillowWriter if suffix == ".gif" else FFMpegWriter)(fps=_FRAMES_PER_SECOND)
    # The writer tells the format by the ending, which a half-written file does not have yet.
    named = path.with_name(path.name + suffix)
    try:
        FuncAnimation(figure, draw_step, frames=steps).save(named, writer=writer, dpi=100)
        named.replace(path)
    finally:
        named.unlink(missing_ok=True)
        plt.close(figure)


def _wrapped(name: str) -> str:
    return textwrap.fill(name, 22)


def levels_of(drawn: list[np.ndarray]) -> tuple[float, ...]:
    """Returns eleven levels that span the finite values of some frames."""
    known = np.concatenate([frames[np.isfinite(frames)] for frames in drawn])
    least, greatest = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    return tuple(np.linspace(least, greatest if greatest > least else least + 1, 11))


def colouring(palette: Palette, levels: tuple[float, ...]) -> tuple[Any, Any]:
    """Returns matplotlib's colour map and norm for a palette."""
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm, ListedColormap

    if isinstance(palette.colours, str):
        named = colormaps[palette.colours]
        return named, BoundaryNorm(levels, named.N, extend="both")
    listed = ListedColormap(list(palette.colours[:-1]), over=palette.colours[-1])
    return listed, BoundaryNorm(levels, listed.N)


def pixels_of(rows: list[np.ndarray], palette: Palette) -> np.ndarray:
    """Returns rows of up to six frames each as one image without any text, `(H,W,3)` of bytes.

    Args:
        rows: Frames in physical units, each `(T,H,W)`.
        palette: The task's colours.
    """
    colours, norm = colouring(palette, palette.levels or levels_of(rows))
    enlarged = max(1, -(-_LEAST_PIXELS // max(rows[0].shape[1:])))
    painted = []
    for frames in rows:
        shown = frames[_spread(len(frames))]
        shown = shown[:, ::-1] if palette.first_row == "lower" else shown
        bytes_ = colours(norm(np.ma.masked_invalid(shown)), bytes=True)[..., :3]
        bytes_ = bytes_.repeat(enlarged, 1).repeat(enlarged, 2)
        framed = np.pad(bytes_, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
        painted.append(np.concatenate(list(framed), axis=1))
    width = max(row.shape[1] for row in painted)
    padded = [np.pad(row, ((0, 0), (width - row.shape[1], 0), (0, 0)), constant_values=255) for row in painted]
    return np.concatenate(padded)


def _spread(count: int) -> list[int]:
    """Up to six indices of `count` frames, equally far apart, the last always among them."""
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
        path: Where to.
        context: Physical units `(T_in, H, W)`, first row in the south.
        target: The same, `(T_out, H, W)`.
        forecasts: Name to the same, `(T_out, H, W)`.
        look: Of the task.
        cadence_minutes: Time between frames.
        title: Above the picture.
    """
    rows = [Panel("context", context, first=1 - len(context)), Panel("target", target)]
    rows += [Panel(name, frames) for name, frames in forecasts.items()]
    return draw(path, rows, look=look, cadence_minutes=cadence_minutes, title=title)
