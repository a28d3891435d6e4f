"""A cube on (time, y, x) as xarray reads it: axes, times and units from the headers, frames when they are asked for.

Source: NetCDF Climate and Forecast (CF) conventions 1.11, sections 4 (coordinate types) and 5.6 (grid mappings); packed
and missing values are read as `bench.data.netcdf` reads them.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import operator
import os
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.data.grid.times import TimeAxis, decoded_times, time_axis
from bench.data.netcdf import Variables, decoded, open_netcdf, text
from bench.errors import DataError, EarthbenchError, did_you_mean

if TYPE_CHECKING:
    from xarray import Variable

_AXES = {
    "time": ("time", "valid_time", "t", "date", "datetime"),
    "y": ("y", "lat", "latitude", "yc", "south_north", "northing", "row", "rows", "nlat", "rlat"),
    "x": ("x", "lon", "longitude", "xc", "west_east", "easting", "column", "columns", "col", "nlon", "rlon"),
}
_STANDARD_NAMES = {
    "time": ("time",),
    "y": ("projection_y_coordinate", "latitude", "grid_latitude"),
    "x": ("projection_x_coordinate", "longitude", "grid_longitude"),
}
_ZARR_FILES = ("zarr.json", ".zmetadata", ".zgroup", ".zattrs")
_NETCDF_ENDINGS = (".nc", ".nc4", ".cdf", ".netcdf", ".h5", ".hdf5")
_MOST_OPEN = 32
_BLOCK_BYTES = 128 << 20
"""Memory for the frames that are hashed together."""
_LARGEST = 1e20
"""No field has such values; fill values do."""


@dataclass(frozen=True)
class Grid:
    """Where the pixels of a cube lie."""

    size: tuple[int, int]
    names: tuple[str, str]
    """Of the dimensions y and x."""
    coordinates: tuple[np.ndarray | None, np.ndarray | None]
    """Of y `(H,)` and x `(W,)`, float64, where the cube has them."""
    attributes: tuple[dict[str, Any], dict[str, Any]]
    """Of these coordinates."""
    mapping: dict[str, Any] = field(default_factory=dict)
    """Attributes of the CF grid mapping, where there is one."""
    auxiliary: dict[str, tuple[np.ndarray, dict[str, Any]]] = field(default_factory=dict)
    """Latitudes and longitudes on (y, x), float64 `(H,W)`, and their attributes, where the grid is curvilinear."""

    @property
    def tag(self) -> str:
        """Returns six hexadecimal digits that tell one place from another."""
        content = hashlib.sha256(repr((self.size, sorted(map(str, self.mapping.items())))).encode())
        for axis in self.coordinates:
            content.update(b"none" if axis is None else np.ascontiguousarray(axis, np.float64).tobytes())
        return content.hexdigest()[:6]

    @property
    def from_north(self) -> bool:
        """Returns whether the first row is the northernmost."""
        y = self.coordinates[0]
        return y is not None and len(y) > 1 and bool(y[0] > y[-1])


@dataclass(frozen=True)
class Part:
    """One file or store of a cube: its frames follow those of the part before it."""

    path: Path
    first: int
    count: int


class Cube:
    """Frames of variables on (time, y, x), read lazily; picklable, each process opens its own files.

    Args:
        root: A NetCDF file, a Zarr store, a folder of either, a glob of files, or such behind an fsspec address.
        variables: Names of the variables on (time, y, x), the channels; empty for the only one that there is.
        static: Names of variables on (y, x), further channels of contexts.

    Raises:
        DataError: nothing readable there, or an axis, variable or time that is not as it should be.
    """

    def __init__(self, root: Path, variables: Sequence[str] = (), static: Sequence[str] = ()) -> None:
        self.root = root
        self._open: OrderedDict[str, tuple[ExitStack, Variables]] = OrderedDict()
        self._process = os.getpid()
        paths = part_paths(root)
        first = self._variables(paths[0])
        self.names = tuple(variables) or (_only_variable(first, str(paths[0])),)
        self.dimensions = {name: _dimensions(first, name, str(paths[0])) for name in self.names}
        self.grid = _grid(first, self.names[0], self.dimensions[self.names[0]])
        self.units = tuple(text(first[name], "units", "1") or "1" for name in self.names)
        self.long_name = text(first[self.names[0]], "long_name") or self.names[0]
        self.static_names = tuple(static)
        self.static = np.stack([self._field(first, name, paths[0]) for name in static]) if static else None
        self.parts, self.axis = self._timeline(paths)
        frame_bytes = 4 * self.grid.size[0] * self.grid.size[1] * len(self.names)
        self.chunk = max(1, min(self._chunk_of_time(first), _BLOCK_BYTES // frame_bytes))

    def __len__(self) -> int:
        """Returns the number of frames."""
        return len(self.axis.times)

    def read(self, first: int, last: int, rows: slice = slice(None), columns: slice = slice(None)) -> np.ndarray:
        """Returns frames `first` to `last - 1` of all variables, float32 `(T,H,W,C)`, NaN where missing.

        Raises:
            DataError: they cannot be read, or have values that no field has.
        """
        found = []
        for name in self.names:
            pieces = [
                self._piece(part, name, max(first, part.first), min(last, part.first + part.count), rows, columns)
                for part in self.parts
                if part.first < last and first < part.first + part.count
            ]
            found.append(pieces[0] if len(pieces) == 1 else np.concatenate(pieces))
        return found[0][..., None] if len(found) == 1 else np.stack(found, -1)

    def frames(
        self, chosen: Sequence[int], rows: slice = slice(None), columns: slice = slice(None)
    ) -> Iterator[np.ndarray]:
        """Yields the frames `(H,W,C)` of ascending numbers; what is stored together is unpacked once."""
        for part in self.parts:
            own = [((at - part.first) // self.chunk, at) for at in chosen if 0 <= at - part.first < part.count]
            for _, block in itertools.groupby(own, operator.itemgetter(0)):
                wanted = [at for _, at in block]
                values = self.read(wanted[0], wanted[-1] + 1, rows, columns)
                yield from (values[at - wanted[0]] for at in wanted)

    def _piece(self, part: Part, name: str, first: int, last: int, rows: slice, columns: slice) -> np.ndarray:
        source = f"{part.path}: {name}"
        try:
            variable = self._variables(part.path)[name]
            time, y, x = self.dimensions[name]
            single = {dim: 0 for dim in variable.dims if dim not in (time, y, x)}
            chosen = variable.isel({time: slice(first - part.first, last - part.first), y: rows, x: columns, **single})
            values = _values(chosen.transpose(time, y, x), source)
        except EarthbenchError:
            raise
        except Exception as error:  # each library raises what it stumbles over
            raise DataError(
                f"{source}: frames {self.axis.times[first]} to {self.axis.times[last - 1]} cannot be read: "
                f"{' '.join(str(error).split()) or type(error).__name__}"
            ) from error
        if (values > _LARGEST).any() or (values < -_LARGEST).any():  # faster than a minimum that passes over NaN
            worst = values.flat[np.nanargmax(np.abs(values))]
            raise DataError(
                f"{source}: expected {self.units[self.names.index(name)]}, found {worst:g} between "
                f"{self.axis.times[first]} and {self.axis.times[last - 1]}. Is a fill value not declared? In xarray: "
                "data.where(data < ...)"
            )
        return values

    def _field(self, variables: Variables, name: str, path: Path) -> np.ndarray:
        source = f"{path}: {name}"
        _, y, x = self.dimensions[self.names[0]]
        if name not in variables:
            raise DataError(f"{source}: no such variable. {did_you_mean(name, list(variables))}")
        variable = variables[name]
        if set(variable.dims) != {y, x}:
            raise DataError(f"{source}: expected a static field on ({y}, {x}), found {variable.dims}")
        return np.nan_to_num(decoded(variable.transpose(y, x), source))

    def _chunk_of_time(self, variables: Variables) -> int:
        variable = variables[self.names[0]]
        sizes = variable.encoding.get("preferred_chunks") or {}
        return int(sizes.get(self.dimensions[self.names[0]][0], 16))

    def _timeline(self, paths: Sequence[Path]) -> tuple[tuple[Part, ...], TimeAxis]:
        dim = self.dimensions[self.names[0]][0]
        found = []
        for path in paths:
            variables = self._variables(path)
            for name in self.names:
                if name not in variables:
                    raise DataError(f"{path}: no variable {name!r}, which {paths[0]} has")
                size = tuple(variables[name].sizes[d] for d in self.dimensions[name][1:] if d in variables[name].sizes)
                if size != self.grid.size:
                    raise DataError(f"{path}: {name}: expected {self.grid.size} pixels as {paths[0]} has, found {size}")
            found.append((decoded_times(_time_variable(variables, dim, str(path)), f"{path}: {dim}"), path))
        if len(found) > 1:
            found.sort(key=lambda one: str(one[0][0]))
        parts, count = [], 0
        for times, path in found:
            parts.append(Part(path, count, len(times)))
            count += len(times)
        where = str(self.root) if len(paths) > 1 else str(paths[0])
        return tuple(parts), time_axis(np.concatenate([times for times, _ in found]), f"{where}: {dim}")

    def _variables(self, path: Path) -> Variables:
        if self._process != os.getpid():  # handles must not be used on the far side of a fork
            self._open, self._process = OrderedDict(), os.getpid()
        key = str(path)
        if key not in self._open:
            if len(self._open) >= _MOST_OPEN:
                self._open.popitem(last=False)[1][0].close()
            stack = ExitStack()
            self._open[key] = (stack, _opened(path, stack))
        self._open.move_to_end(key)
        return self._open[key][1]

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state without open files: each process opens its own."""
        return {**self.__dict__, "_open": OrderedDict(), "_process": os.getpid()}


def part_paths(root: Path) -> list[Path]:
    """Returns the files and stores that a root names, in the order of their names.

    Raises:
        DataError: there are none.
    """
    name = str(root)
    if isinstance(root, Path):
        if "*" in name or "?" in name:
            found = [Path(path) for path in sorted(glob.glob(name, recursive=True))]  # noqa: PTH207 - absolute patterns
        elif root.is_dir() and not _is_zarr(root):
            found = [path for path in sorted(root.iterdir()) if path.suffix in (*_NETCDF_ENDINGS, ".zarr")]
        else:
            found = [root] if root.exists() else []
    elif "*" in name:
        remote: Any = root
        found = [type(root)(remote.fs.unstrip_protocol(path)) for path in sorted(remote.fs.glob(remote.path))]
    else:
        found = [root]
    if not found:
        raise DataError(
            f"data.root={root}: expected a NetCDF file, a Zarr store, a folder of them or a glob such as 'dir/*.nc', "
            "found nothing there"
        )
    return found


def _is_zarr(path: Path) -> bool:
    return any((path / name).is_file() for name in _ZARR_FILES)


def _opened(path: Path, stack: ExitStack) -> Variables:
    """Returns the variables of one part as they are stored."""
    local = isinstance(path, Path)
    try:
        if path.is_dir() if local else not str(path).endswith(_NETCDF_ENDINGS):
            import xarray

            remote: Any = path
            options: dict[str, Any] = {} if local else {"storage_options": dict(remote.storage_options)}
            with warnings.catch_warnings():  # that metadata are not consolidated
                warnings.filterwarnings("ignore", ".*consolidated", RuntimeWarning)
                dataset = xarray.open_dataset(
                    str(path), engine="zarr", chunks=None, decode_cf=False, cache=False, **options
                )
            return stack.enter_context(dataset).variables  # type: ignore[return-value] # its names are strings
        if local:
            with path.open("rb") as file:
                magic = file.read(4)
            if magic[:3] == b"CDF" or magic == b"\x89HDF":
                return stack.enter_context(open_netcdf(path))
        import xarray

        source: Any = path
        source = path if local else stack.enter_context(source.open("rb"))
        engine: dict[str, Any] = {} if local else {"engine": "h5netcdf"}
        dataset = stack.enter_context(xarray.open_dataset(source, decode_cf=False, cache=False, **engine))
        return dataset.variables  # type: ignore[return-value]
    except EarthbenchError:
        raise
    except Exception as error:  # each engine and protocol has errors of its own
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(
            f"{path}: xarray cannot open it: {said}. Expected NetCDF or Zarr; `earthbench data convert radar_files "
            "grid` reads radar formats"
        ) from error


def _only_variable(variables: Variables, source: str) -> str:
    """Returns the one variable that has three dimensions or more, time among them."""
    fields = [name for name, found in variables.items() if sum(size > 1 for size in found.shape) >= 3]
    fields = fields or [name for name, found in variables.items() if found.ndim >= 3]
    if len(fields) == 1:
        return fields[0]
    if not fields:
        known = ", ".join(f"{name}{found.dims}" for name, found in variables.items()) or "none"
        raise DataError(f"{source}: expected a variable on (time, y, x), found {known}")
    fields = sorted(fields)
    raise DataError(
        f"{source}: {len(fields)} variables on a grid: {', '.join(fields)}. Say which one is forecast: "
        f"task.variable={fields[0]}, or several: task.variable=[{','.join(fields[:2])}]"
    )


def _dimensions(variables: Variables, name: str, source: str) -> tuple[str, str, str]:
    """Returns the dimensions (time, y, x) of a variable."""
    if name not in variables:
        fields = [one for one, found in variables.items() if found.ndim >= 2]
        raise DataError(f"{source}: no variable {name!r}. {did_you_mean(name, fields)}")
    variable = variables[name]
    wide = [str(dim) for dim, size in variable.sizes.items() if size > 1]
    role = {dim: _role(variables, dim) for dim in map(str, variable.dims)}
    time = next((dim for dim, found in role.items() if found == "time"), None)
    if time is None:
        raise DataError(
            f"{source}: {name} has no dimension of time among {tuple(role)}. Expected (time, y, x) with a coordinate "
            "`time`; in xarray: data.expand_dims('time') or data.rename(...), with times"
        )
    space = [dim for dim in role if dim != time and (dim in wide or role[dim] in ("y", "x"))]
    if len(space) > 2:
        extra = next((dim for dim in space if role[dim] is None), space[0])
        raise DataError(
            f"{source}: {name} has {len(space) + 1} dimensions {tuple(variable.dims)}; expected (time, y, x). Choose "
            f"one {extra}; in xarray: data.isel({extra}=0)"
        )
    if len(space) < 2:
        raise DataError(f"{source}: {name} has the dimensions {tuple(variable.dims)}; expected (time, y, x)")
    y, x = space
    if role[y] == "x" or role[x] == "y":
        y, x = x, y
    return time, y, x


def _role(variables: Variables, dim: str) -> str | None:
    """Returns which axis a dimension is: time, y, x or unknown; by its coordinate's attributes, else by its name."""
    found = variables.get(dim)
    if found is not None:
        if text(found, "axis").upper() in ("T", "Y", "X"):
            return {"T": "time", "Y": "y", "X": "x"}[text(found, "axis").upper()]
        if found.dtype.kind == "M" or " since " in text(found, "units"):
            return "time"
        for role, names in _STANDARD_NAMES.items():
            if text(found, "standard_name") in names:
                return role
    return next((role for role, names in _AXES.items() if dim.lower() in names), None)


def _time_variable(variables: Variables, dim: str, source: str) -> Variable:
    if dim in variables and variables[dim].ndim <= 1:
        return variables[dim]
    along = [found for found in variables.values() if found.dims == (dim,) and " since " in text(found, "units")]
    if along:
        return along[0]
    raise DataError(
        f"{source}: dimension {dim!r} has no times. In xarray: data.assign_coords({dim}=pandas.date_range(START, "
        "periods=..., freq='5min'))"
    )


def _grid(variables: Variables, name: str, dimensions: tuple[str, str, str]) -> Grid:
    variable, axes = variables[name], dimensions[1:]
    coordinates, attributes = [], []
    for dim in axes:
        found = variables.get(dim)
        known = found is not None and found.ndim == 1 and found.dtype.kind in "iuf"
        coordinates.append(decoded(found, f"{name}: {dim}", np.float64) if known and found is not None else None)
        attributes.append(_plain(found.attrs) if known and found is not None else {})
    mapping = variables.get(text(variable, "grid_mapping"))
    size = variable.sizes[axes[0]], variable.sizes[axes[1]]
    auxiliary = {
        str(one): (decoded(found.transpose(*axes), f"{name}: {one}", np.float64), _plain(found.attrs))
        for one, found in variables.items()
        if set(found.dims) == set(axes) and one not in axes and _is_place(variable, str(one), found)
    }
    return Grid(size, axes, (coordinates[0], coordinates[1]), (attributes[0], attributes[1]),
                _plain(mapping.attrs) if mapping is not None else {}, auxiliary)  # fmt: skip


def _is_place(variable: Variable, name: str, coordinate: Variable) -> bool:
    """Returns whether a variable is the latitude or longitude of a field's cells."""
    named = name in text(variable, "coordinates").split()
    degrees = text(coordinate, "units").lower().startswith("degree")
    return named or degrees or text(coordinate, "standard_name") in ("latitude", "longitude")


def _plain(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    """Returns attributes that can be written again: text and numbers, without those of packing."""
    left_out = ("_FillValue", "missing_value", "DIMENSION_LABELS", "bounds")
    found = {}
    for key, value in attributes.items():
        plain = value.decode(errors="replace") if isinstance(value, bytes) else value
        plain = plain.tolist() if isinstance(plain, np.ndarray | np.generic) else plain
        if key not in left_out and isinstance(plain, str | int | float | list):
            found[str(key)] = plain
    return found


def _values(variable: Variable, source: str) -> np.ndarray:
    """Returns physical values, float32; at once where nothing is packed and NaN is what is missing."""
    packing = ("scale_factor", "add_offset", "missing_value", "valid_min", "valid_max", "valid_range", "_Unsigned")
    fill = variable.attrs.get("_FillValue")
    if variable.dtype.kind == "f" and fill is not None and not any(name in variable.attrs for name in packing):
        number = np.ravel(fill)
        if number.size == 1 and number.dtype.kind == "f" and np.isnan(number[0]):
            return variable.to_numpy().astype(np.float32, copy=False)
    return decoded(variable, source)
