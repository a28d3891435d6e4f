"""Single forecasts instead of scores: from a sequence or a file to members and a CF-style NetCDF file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.api import MONTH_MINUTES, Samples, Split, samples_with
from bench.data.netcdf import decoded, open_netcdf
from bench.data.plausibility import refuse_empty, refuse_implausible
from bench.engine.ensembles import draw, member_seed
from bench.engine.forecaster import check_forecast
from bench.engine.trainer import translated_errors
from bench.errors import ConfigError, ContractError, DataError, RunFailedError
from bench.files import replacing
from bench.models import made_from
from bench.tasks.task import FrameCoordinates, Task

if TYPE_CHECKING:
    import xarray


_CONTROL = {"long_name": "n of the control: mean + n standard deviations", "units": "1"}


@dataclass(frozen=True)
class Case:
    """The input of a forecast, in physical units."""

    name: str
    """Its origin, for titles."""
    sequence: int
    """Its number in the split; 0 if it is not from a split."""
    context: Tensor
    """`(T_in,H,W,C)` float32."""
    target: Tensor | None
    """The observed future, `(T_out,H,W,C)` float32; None if unknown."""
    cadence_minutes: float
    coordinates: FrameCoordinates | None = None
    """Its time and location, if the data have them."""
    observed: Tensor | None = None
    """Where the context was observed rather than filled, bool `(T_in,H,W,C)`; None if everywhere."""

    @property
    def observed_context(self) -> Tensor:
        """Returns the context `(T_in,H,W,C)`, NaN where it was filled."""
        return self.context if self.observed is None else self.context.masked_fill(~self.observed, torch.nan)

    def where_observed(self, forecasts: Tensor) -> Tensor:
        """Returns forecasts `(...,T,H,W,C)`, NaN at pixels that no frame of the context has: models guess there."""
        if self.observed is None:
            return forecasts
        return forecasts.masked_fill(~self.observed[..., : forecasts.shape[-1]].any(0), torch.nan)


def case_of_latest(task: Task) -> Case:
    """Returns the newest context of the data, whose future is not known yet.

    Raises:
        ConfigError: the data are events.
        DataError: the newest frames have a gap.
    """
    stored, coordinates = task.latest()
    context = task.denormalise(task.to_context(stored))
    name = f"{coordinates.start}"
    return Case(name, 0, context, None, task.cadence_minutes, coordinates, task.context_known(stored))


def case_from_split(task: Task, split: Split, sequence: int = 0) -> Case:
    """Returns a sequence of a split.

    Raises:
        DataError: the split is empty.
        ConfigError: no such split or sequence.
    """
    data = task.dataset(split)
    refuse_empty(data)
    if not 0 <= sequence < len(data):
        raise ConfigError(f"sequence {sequence}: split {split!r} has sequences 0 to {len(data) - 1}")
    stored = data.stored(sequence)
    context = task.denormalise(task.to_context(stored[0]))
    target, coordinates = task.to_target(stored[1]).float(), task.coordinates(split, sequence)
    name = f"{split} split, sequence {sequence}"
    known = task.context_known(stored[0])
    return Case(name, sequence, context, target, task.cadence_minutes, coordinates, known)


def case_from_file(task: Task, path: Path) -> Case:
    """Returns the context in a file: `.npy`, or NetCDF with a variable `context` as `write_netcdf` writes it.

    Frames are in physical units, `(T_in,H,W)` or `(T_in,H,W,C)`; a variable `target` of a NetCDF file is read, too.

    Raises:
        DataError: the file is missing, unreadable or of another shape than the task's contexts.
    """
    target, cadence = None, task.cadence_minutes
    try:
        if path.suffix == ".npy":
            context = np.load(path, allow_pickle=False)
            if not isinstance(context, np.ndarray):
                raise DataError("it is an archive of arrays")
        else:
            with open_netcdf(path) as variables:
                if "context" not in variables:
                    raise DataError(f"no variable 'context' among {', '.join(variables) or 'none'}")
                context = decoded(variables["context"], f"{path}: context")
                target = decoded(variables["target"], f"{path}: target") if "target" in variables else None
                if "context_time" in variables and variables["context_time"].size > 1:
                    times = decoded(variables["context_time"], f"{path}: context_time", np.float64)
                    cadence = float(times[1] - times[0])
    except (OSError, ValueError, EOFError, DataError) as error:
        said = " ".join(str(error).split())
        raise DataError(
            f"{path} cannot be read as a context: {said}. Expected a .npy array {task.input_shape} of "
            f"{task.physical_units} or a NetCDF file with a variable `context` of that shape."
        ) from error
    frames = _frames(context, task, task.input_shape, f"context in {path}")
    filled = task.denormalise(task.to_context(frames)) if bool(frames.isnan().any()) else frames
    if bool(frames.isinf().any()) or not bool(filled.isfinite().all()):
        wrong = np.argwhere(~np.isfinite(frames.numpy()))
        raise DataError(
            f"context in {path}: expected {task.physical_units}, found {len(wrong)} missing values, at {_at(wrong[0])}"
        )
    return Case(
        path.name,
        0,
        filled,
        None if target is None else _frames(target, task, task.target_shape, f"target in {path}"),
        cadence,
        observed=frames.isfinite(),
    )


def _at(index: Sequence[int]) -> str:
    return "frame {}, row {}, column {}, channel {}".format(*index)


def _frames(values: np.ndarray, task: Task, shape: tuple[int, ...], what: str) -> Tensor:
    frames = values[..., None] if values.ndim == 3 else values
    if frames.shape != shape or frames.dtype.kind not in "iuf":
        raise DataError(f"{what} has shape {values.shape} of {values.dtype}; expected numbers (T,H,W,C) = {shape}")
    if task.plausible is not None:
        refuse_implausible(frames, task.plausible, what, _at)
    return torch.from_numpy(np.ascontiguousarray(frames, np.float32))


def forecast(
    model: nn.Module,
    task: Task,
    context: Tensor,
    *,
    members: int = 1,
    seed: int = 0,
    sequence: int = 0,
    control: float | None = None,
    device: str = "cpu",
) -> Tensor:
    """Returns the members of a forecast `(M,T_out,H,W,C)` in physical units, float32, on the CPU.

    For a sequence of a split, they are the members that an evaluation of the same size scores.

    Args:
        model: A model for the task's shapes; one without `sample` gives one member.
        task: Normalises and denormalises.
        context: Physical units `(T_in,H,W,C)`.
        members: Members to draw.
        seed: Seed of the members, as `evaluate.member_seed`.
        sequence: Number of the sequence in its split, which seeds the members together with `seed`.
        control: Strength of the knowledge control, for models whose `sample` takes it.
        device: Where to compute.

    Raises:
        ConfigError: members or control requested from a model without them.
        ContractError: the forecast has the wrong shape or dtype.
        RunFailedError: the forecast is not finite, or memory ran out.
    """
    name = made_from(model).name
    if members < 1:
        raise ConfigError(f"members={members}: expected at least 1")
    if members > 1 and not isinstance(model, Samples):
        raise ConfigError(f"model {name!r} is deterministic: it has one member; found members={members}")
    if control is not None and not samples_with(model, "control"):
        raise ConfigError(f"model {name!r} takes no control")
    model = model.to(device).eval()
    batch = task.to_context(context)[None].to(device)
    with torch.inference_mode(), translated_errors(f"a forecast of {members} members"):
        if not isinstance(model, Samples):
            drawn = model(batch)[None]
        else:
            options = {} if control is None else {"control": control}
            try:
                drawn = draw(model, batch, [member_seed(seed, sequence)], members, task.target_shape, **options)
            except ArithmeticError as error:
                raise RunFailedError(f"{name}: {error}") from error
            except ValueError as error:  # models know nothing of our errors
                raise ConfigError(f"{name} cannot draw members: {error}") from error
    if not isinstance(drawn, Tensor) or drawn.dim() != 6 or len(drawn) != members:
        found = tuple(drawn.shape) if isinstance(drawn, Tensor) else type(drawn).__name__
        raise ContractError(f"{name}.sample returned {found}; expected (M, B, T, H, W, C) with M = {members}")
    for member in drawn:
        check_forecast(member, batch, task.target_shape, name)
    if not bool(torch.isfinite(drawn).all()):
        raise RunFailedError(f"the forecast of {name} has NaN or infinite values")
    return task.denormalise(drawn[:, 0].float()).cpu()


def as_dataset(
    case: Case, forecasts: Tensor, task: Task, model: nn.Module, *, controls: Sequence[float] | None = None
) -> xarray.Dataset:
    """Returns a forecast as a data set with CF-style coordinates and attributes.

    Args:
        case: The input of the forecast.
        forecasts: In physical units, `(M,T,H,W,C)`; with N controls `(N,M,T,H,W,C)`.
        task: Gives the units.
        model: Named in the attributes.
        controls: The control of each block of members.
    """
    import xarray

    from bench import __version__

    made = made_from(model)
    minutes = case.cadence_minutes
    leads = np.arange(1, forecasts.shape[-4] + 1) * minutes
    ages = np.arange(1 - len(case.context), 1) * minutes
    _, height, width, channels = task.target_shape
    tail = ("y", "x", "channel")[: 2 + (channels > 1)]
    field = {"long_name": task.physical_units, "units": "1"}

    def variable(values: Tensor, *leading: str) -> tuple[tuple[str, ...], np.ndarray, dict[str, str]]:
        array = values.numpy() if channels > 1 else values[..., 0].numpy()
        return (*leading, *tail), array, field

    after: dict[str, str] = {"standard_name": "forecast_period", "units": "minutes"}
    before = {"long_name": "time before the start", "units": "minutes"}
    if task.timeless:
        after, before = ({"long_name": f"frames {way} the start", "units": "1"} for way in ("after", "before"))
    coordinates: dict[str, Any] = {
        "lead_time": ("lead_time", leads, after),
        "context_time": ("context_time", ages, before),
        "member": ("member", np.arange(forecasts.shape[-5]), {"standard_name": "realization", "units": "1"}),
        "y": ("y", np.arange(height), {"long_name": "row, from the south", "units": "1", "axis": "Y"}),
        "x": ("x", np.arange(width), {"long_name": "column, from the west", "units": "1", "axis": "X"}),
    }
    if case.coordinates is not None:
        coordinates |= _data_coordinates(case.coordinates, leads, ages)
    leading = ["member", "lead_time"]
    if controls is not None:
        coordinates["control"] = ("control", np.asarray(controls, float), _CONTROL)
        leading.insert(0, "control")
    context = case.observed_context[..., :channels]  # without static fields
    shown = case.where_observed(forecasts)
    variables = {"forecast": variable(shown, *leading), "context": variable(context, "context_time")}
    if case.target is not None:
        variables["target"] = variable(case.target, "lead_time")
    found = xarray.Dataset(
        variables,
        coordinates,
        {
            "Conventions": "CF-1.11",
            "title": f"{made.name} forecast of {task.name}, {case.name}",
            "source": f"earthbench {__version__}, model {made.name}",
            "history": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} written by earthbench forecast",
        },
    )
    return found if case.coordinates is None else _with_data_attributes(found, case.coordinates)


def _data_coordinates(data: FrameCoordinates, leads: np.ndarray, ages: np.ndarray) -> dict[str, Any]:
    """Returns the data's own coordinates: times, locations, and the names of several variables."""
    found: dict[str, Any] = {
        "forecast_reference_time": ((), data.start.astype("M8[ns]"), {"standard_name": "forecast_reference_time"}),
        "time": ("lead_time", _times(data.start, leads), {"standard_name": "time"}),
        "time_of_context": ("context_time", _times(data.start, ages), {"long_name": "time"}),
    }
    for name, values, attributes in zip(("y", "x"), (data.y, data.x), data.attributes, strict=True):
        if values is not None:
            found[name] = (name, values, {**attributes, "axis": name.upper()})
    found |= {name: (("y", "x"), values, attributes) for name, (values, attributes) in data.auxiliary.items()}
    if len(data.variables) > 1:
        found["channel"] = ("channel", list(data.variables), {"long_name": "variable"})
        found["channel_units"] = ("channel", list(data.units), {"long_name": "units of the variable"})
    return found


def _times(start: np.datetime64, minutes: np.ndarray) -> np.ndarray:
    """Returns times, datetime64[ns], given minutes after a start; for whole months, at the same time of each month."""
    months = np.rint(minutes / MONTH_MINUTES)
    if not np.allclose(minutes, months * MONTH_MINUTES):
        return start.astype("M8[ns]") + (minutes * 60e9).astype("m8[ns]")
    first = start.astype("M8[M]")
    month, within = first + months.astype(int), start.astype("M8[s]") - first
    last_day = ((month + 1).astype("M8[D]") - month - 1).astype("m8[s]") + within % np.timedelta64(1, "D")
    return (month + np.minimum(within, last_day)).astype("M8[ns]")


def _with_data_attributes(dataset: xarray.Dataset, data: FrameCoordinates) -> xarray.Dataset:
    """Returns a forecast with the data's units, projection and names of dimensions."""
    one = len(data.variables) == 1
    for name in dataset.data_vars:
        attributes = dataset[name].attrs
        if one:
            attributes |= {"long_name": data.variables[0], "units": data.units[0]}
        else:  # each channel has its own
            attributes["long_name"] = ", ".join(map("{} [{}]".format, data.variables, data.units))
            del attributes["units"]
        if data.mapping:
            dataset[name].attrs["grid_mapping"] = "crs"
    if data.mapping:
        dataset["crs"] = ((), 0, data.mapping)
    return dataset.rename({old: new for old, new in zip(("y", "x"), data.names, strict=True) if old != new})


def write_netcdf(dataset: xarray.Dataset, path: Path) -> Path:
    """Writes a data set as compressed NetCDF 4, whole or not at all, and returns the path."""
    packing = {str(name): {"zlib": True, "complevel": 4} for name, found in dataset.data_vars.items() if found.ndim}
    with replacing(path) as part:
        dataset.to_netcdf(part, engine="h5netcdf", encoding=packing)
    return path
