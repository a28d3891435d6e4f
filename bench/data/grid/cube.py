"""A cube on (time, y, x), read by xarray: axes, times and units from the headers, frames on demand.

Source: NetCDF Climate and Forecast (CF) conventions 1.11, sections 4 (coordinate types) and 5.6 (grid mappings); packed
and missing values are decoded by `bench.data.netcdf`.
"""

from __future__ import annotations

import glob
import itertools
import operator
import os
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.data.grid.axes import dimensions_of, grid_of, only_variable, time_variable
from bench.data.grid.times import TimeAxis, decoded_times, time_axis
from bench.data.netcdf import Variables, decoded, open_netcdf, text
from bench.errors import DataError, EarthbenchError, did_you_mean

if TYPE_CHECKING:
    from xarray import Variable

_ZARR_FILES = ("zarr.json", ".zmetadata", ".zgroup", ".zattrs")
_NETCDF_ENDINGS = (".nc", ".nc4", ".cdf", ".netcdf", ".h5", ".hdf5")
_NO_ENGINE = "did not find a match in any of xarray's currently installed IO backends"
"""How xarray says that a file is of no format that it knows; what follows is advice to programmers."""
_MAX_OPEN_FILES = 32
_BLOCK_BYTES = 128 << 20
"""Memory for the frames that are hashed together."""
_MAX_MAGNITUDE = 1e20
"""Larger values are fill values: no physical field has them."""


@dataclass(frozen=True)
class Part:
    """One file or store of a cube, whose frames follow those of the previous part."""

    path: Path
    first: int
    count: int


class Cube:
    """Frames of variables on (time, y, x), read lazily; picklable, and each process opens its own files.

    Args:
        root: A NetCDF file, a Zarr store, a folder of either, a glob of files, or an fsspec URL of any of these.
        variables: Names of the variables on (time, y, x), i.e. the channels; empty if there is only one.
        static: Names of variables on (y, x), further channels of contexts.

    Raises:
        DataError: nothing is readable, or an axis, a variable or a time is invalid.
    """

    def __init__(self, root: Path, variables: Sequence[str] = (), static: Sequence[str] = ()) -> None:
        self.root = root
        self._open: OrderedDict[str, tuple[ExitStack, Variables]] = OrderedDict()
        self._process = os.getpid()
        paths = part_paths(root)
        first = self._variables(paths[0])
        self.names = tuple(variables) or (only_variable(first, str(paths[0])),)
        self.dimensions = {name: dimensions_of(first, name, str(paths[0])) for name in self.names}
        self.grid = grid_of(first, self.names[0], self.dimensions[self.names[0]])
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
            DataError: they cannot be read, or have impossible values.
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
        """Yields the frames `(H,W,C)` with the given ascending numbers; each chunk is unpacked once."""
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
        except Exception as error:  # each library has its own errors
            raise DataError(
                f"{source}: frames {self.axis.times[first]} to {self.axis.times[last - 1]} cannot be read: "
                f"{' '.join(str(error).split()) or type(error).__name__}"
            ) from error
        if (values > _MAX_MAGNITUDE).any() or (
            values < -_MAX_MAGNITUDE
        ).any():  # faster than a minimum that ignores NaN
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
            found.append((decoded_times(time_variable(variables, dim, str(path)), f"{path}: {dim}"), path))
        if len(found) > 1:
            found.sort(key=lambda one: str(one[0][0]))
        parts, count = [], 0
        for times, path in found:
            parts.append(Part(path, count, len(times)))
            count += len(times)
        where = str(self.root) if len(paths) > 1 else str(paths[0])
        return tuple(parts), time_axis(np.concatenate([times for times, _ in found]), f"{where}: {dim}")

    def _variables(self, path: Path) -> Variables:
        if self._process != os.getpid():  # handles must not be used after a fork
            self._open, self._process = OrderedDict(), os.getpid()
        key = str(path)
        if key not in self._open:
            if len(self._open) >= _MAX_OPEN_FILES:
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
            with warnings.catch_warnings():  # metadata need not be consolidated
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
    except Exception as error:  # each engine and protocol has its own errors
        said = " ".join(str(error).split())[:300] or type(error).__name__
        why = "it is neither NetCDF nor Zarr" if _NO_ENGINE in said else f"xarray cannot open it: {said}"
        raise DataError(
            f"{path}: {why}. Expected NetCDF or Zarr. `earthbench data convert radar_files grid` reads radar formats; "
            f"an array is written by xarray.Dataset({{'NAME': (('time', 'y', 'x'), array)}}, "
            f"{{'time': times}}).to_netcdf('cube.nc')"
        ) from error


def _values(variable: Variable, source: str) -> np.ndarray:
    """Returns physical values, float32; with a shortcut for unpacked values whose missing value is NaN."""
    packing = ("scale_factor", "add_offset", "missing_value", "valid_min", "valid_max", "valid_range", "_Unsigned")
    fill = variable.attrs.get("_FillValue")
    if variable.dtype.kind == "f" and fill is not None and not any(name in variable.attrs for name in packing):
        number = np.ravel(fill)
        if number.size == 1 and number.dtype.kind == "f" and np.isnan(number[0]):
            return variable.to_numpy().astype(np.float32, copy=False)
    return decoded(variable, source)
