"""NetCDF files, classic or version 4: xarray opens and decodes them, cftime reads their times.

Source: NetCDF Climate and Forecast (CF) conventions 1.11, sections 2.5.1 (missing data), 4.4 (time) and 8.1 (packing);
NetCDF User's Guide, appendix A (`valid_range`, `_Unsigned`, default fill values).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.errors import DataError, EarthbenchError

if TYPE_CHECKING:
    import h5py
    from xarray import Variable

Variables = Mapping[str, "Variable"]
_ROUNDING = 1e-6
"""Relative tolerance for the precision of a float32, and of a number written with six digits."""
_MAX_VALUES = 1 << 30
"""80 years of months on a quarter-degree grid; a file may declare more values than fit into memory."""
_DEFAULT_FILL = {"i2": -32767, "i4": -2147483647, "f4": 9.969209968386869e36, "f8": 9.969209968386869e36}
"""Default fill values, which the NetCDF library leaves where nothing was written."""


@contextmanager
def open_netcdf(path: Path) -> Iterator[Variables]:
    """Yields the variables of a NetCDF file by name, as stored; values are read on demand.

    Raises:
        DataError: the file is missing, not NetCDF, or damaged where it is read.
    """
    try:
        import xarray

        with path.open("rb") as file:
            magic = file.read(8)
        if magic[:4] in (b"CDF\1", b"CDF\2"):
            how: dict[str, Any] = {"engine": "scipy"}
        elif magic == b"\x89HDF\r\n\x1a\n":
            _refuse_missing_parts(path)
            how = {"engine": "h5netcdf", "phony_dims": "sort", "driver_kwds": {"locking": False}}  # it only reads
        elif magic[:4] == b"CDF\5":
            raise DataError(
                f"{path}: the classic format with 64-bit data (CDF5): `nccopy -k nc4 IN.nc OUT.nc` converts it"
            )
        else:
            raise DataError(f"{path}: not readable: expected a NetCDF file, found one that starts with {magic!r}")
        with xarray.open_dataset(path, **how, decode_cf=False, cache=False) as dataset:
            yield dataset.variables  # type: ignore[misc] # its names are strings
    except EarthbenchError:
        raise
    # for damaged files, both libraries raise errors of many kinds
    except Exception as error:
        raise DataError(f"{path}: not readable: {error or type(error).__name__}") from error


def _refuse_missing_parts(path: Path) -> None:
    """Refuses an HDF5 file whose arrays are not completely in the file itself.

    Parts in other files, or never written, would silently be read as zeros.  An array that was not written at all is
    constant, which a run refuses.

    Raises:
        DataError: names the array.
    """
    import h5py

    with h5py.File(path, "r", locking=False) as file:
        for name in file:
            array = None if isinstance(file.get(name, getlink=True), h5py.ExternalLink) else file[name]
            if isinstance(array, h5py.Group | h5py.Datatype):
                continue
            where = f"{path}: {name}"
            if array is None or array.is_virtual or array.external:
                raise DataError(
                    f"{where} lies in another file, which may not be there or may change. `ncks IN.nc OUT.nc` writes "
                    "one file with the array itself."
                )
            if array.ndim == 1:  # xarray reads axes when it opens a file
                _refuse_too_many(array.size, _MAX_VALUES >> 6, where)
            if array.chunks and array.dtype.kind in "iuf" and not _is_fill(array):
                found, shape = array.id.get_num_chunks(), zip(array.shape, array.chunks, strict=True)
                wanted = math.prod(math.ceil(size / chunk) for size, chunk in shape)
                if 0 < found < wanted:
                    raise DataError(
                        f"{where}: expected {wanted} chunks, found {found}: the file was not written to its end, and "
                        f"the rest would read as {array.fillvalue}. Get or write it again."
                    )


def _refuse_too_many(count: int, most: int, where: str) -> None:
    if count > most:
        raise DataError(
            f"{where}: {count:,} values are declared; monthly fields and their axes have fewer than {most:,}"
        )


def _is_fill(array: h5py.Dataset) -> bool:
    """Returns whether unwritten values read as missing."""
    declared = [array.attrs.get(name, ()) for name in ("_FillValue", "missing_value")]
    known = [*np.concatenate([np.ravel(value) for value in declared]), *_DEFAULT_FILL.values()]
    return bool(np.isnan(array.fillvalue)) or array.fillvalue in known


def find(variables: Variables, names: tuple[str, ...], standard_names: tuple[str, ...] = ()) -> str | None:
    """Returns the variable that has one of these names, in any case, or else one of these `standard_name`s.

    Args:
        variables: Variables of a file.
        names: In order of preference, lower case.
        standard_names: Standard names of the CF conventions.
    """
    lower = {name.lower(): name for name in reversed(list(variables))}
    for name in names:
        if name in lower:
            return name if name in variables else lower[name]
    return next(
        (name for name, found in variables.items() if text(found, "standard_name").lower() in standard_names), None
    )


def text(variable: Variable, attribute: str, default: str = "") -> str:
    """Returns an attribute as text."""
    value = variable.attrs.get(attribute, default)
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def decoded(variable: Variable, source: str, dtype: type[np.floating[Any]] = np.float32) -> np.ndarray:
    """Returns physical values: unpacked by xarray, NaN where missing or not valid.

    xarray masks by equality, and under numpy 2 no float32 equals the double 1e20 that was written as its fill value
    (github.com/pydata/xarray/issues/9381); it does not apply valid ranges.  So both are done here.

    Args:
        variable: As stored, or a slice of it.
        source: File and variable, for messages.
        dtype: Dtype of the result.

    Raises:
        DataError: the values are not numbers, or attributes are invalid.
    """
    import xarray

    _refuse_too_many(variable.size, _MAX_VALUES, source)
    stored = variable.to_numpy()
    if stored.dtype.kind not in "iuf":
        raise DataError(f"{source}: expected numbers, found {stored.dtype}")
    stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    if stored.dtype.kind == "i" and text(variable, "_Unsigned").lower() == "true":
        stored = stored.view(f"u{stored.dtype.itemsize}")
    fills = [value for name in ("_FillValue", "missing_value") for value in _numbers(variable, name, source)]
    if not fills and stored.dtype.str[1:] in _DEFAULT_FILL:
        fills = [_DEFAULT_FILL[stored.dtype.str[1:]]]
    hidden = np.zeros(stored.shape, bool)
    for value in fills:
        hidden |= _equal(stored, value)
    limits, of_codes = _limits(variable, source, stored.dtype)
    if of_codes:
        hidden |= _outside(stored, *limits)
    # float32 holds 16-bit codes; wider ones need the double
    single = stored.dtype.itemsize < 4 or stored.dtype == np.float32
    packing = {
        name: (np.float32 if single else np.float64)(_finite(variable, name, source))
        for name in ("scale_factor", "add_offset")
        if name in variable.attrs
    }
    values = stored
    if packing:
        holder = xarray.Dataset({"values": xarray.Variable(variable.dims, stored, packing)})
        values = xarray.decode_cf(holder, decode_times=False, decode_coords=False)["values"].to_numpy()
    if limits and not of_codes:
        hidden |= _outside(values, *limits)
    result: np.ndarray = values.astype(dtype, copy=False)
    return np.where(hidden, dtype(np.nan), result) if hidden.any() else result


def _numbers(variable: Variable, name: str, source: str) -> list[float]:
    """Returns an attribute's numbers, also if they are stored as text; none if the attribute is missing."""
    found = np.ravel(variable.attrs.get(name, ()))
    try:
        return [float(value.decode() if isinstance(value, bytes) else value) for value in found]
    except (TypeError, ValueError) as error:
        raise DataError(f"{source}: attribute {name}: expected numbers, found {found.tolist()!r:.80}") from error


def _finite(variable: Variable, name: str, source: str) -> float:
    numbers = _numbers(variable, name, source)
    if len(numbers) != 1 or not math.isfinite(numbers[0]) or (name == "scale_factor" and not numbers[0]):
        raise DataError(f"{source}: attribute {name}: expected one finite number, for a scale not 0; found {numbers}")
    return numbers[0]


def _equal(stored: np.ndarray, value: float) -> np.ndarray:
    if stored.dtype.kind == "f":
        near = _ROUNDING * abs(value) if math.isfinite(value) else 0.0
        with np.errstate(over="ignore"):  # a float32 cannot hold every double
            found = np.asarray(stored >= value - near if value > 0 else stored <= value + near)
            return found & (stored <= value + near) & (stored >= value - near) if found.any() else found
    code = _as_code(value, stored.dtype)
    return np.zeros(stored.shape, bool) if code is None else np.asarray(stored == code)


def _as_code(value: float, dtype: np.dtype[Any]) -> int | None:
    """Returns a number as a code of this type, or None if no code equals it.

    Attributes of an array that is to be read as unsigned are signed as well: -1 is 255.  The largest 32-bit code is one
    larger if it was written as float32.
    """
    if not math.isfinite(value) or value != int(value):
        return None
    code, bounds = int(value), np.iinfo(dtype)
    if dtype.kind == "u" and code < 0:
        code += bounds.max + 1
    if dtype.itemsize > 2 and code == bounds.max + 1:
        code = int(bounds.max)
    return code if bounds.min <= code <= bounds.max else None


def _limits(variable: Variable, source: str, dtype: np.dtype[Any]) -> tuple[tuple[float, float] | tuple[()], bool]:
    """Returns the limits of valid values, if any, and whether they are those of codes rather than of unpacked values.

    According to the User's Guide, they are for codes, unless a packed array's limits are not integers of its type.
    """
    names = ("valid_range",) if "valid_range" in variable.attrs else ("valid_min", "valid_max")
    present = [name for name in names if name in variable.attrs]
    if not present:
        return (), False
    found = {name: _numbers(variable, name, source) for name in present}
    if names == ("valid_range",):
        pair = found["valid_range"]
    else:
        pair = [*found.get("valid_min", [-math.inf]), *found.get("valid_max", [math.inf])]
    packed = dtype.kind in "iu" and ("scale_factor" in variable.attrs or "add_offset" in variable.attrs)
    as_floats = any(np.asarray(variable.attrs[name]).dtype.kind not in "iu" for name in present)
    of_codes = not (packed and as_floats)
    if of_codes and dtype.kind == "u":  # signed as the array is
        pair = [value + np.iinfo(dtype).max + 1 if -math.inf < value < 0 else value for value in pair]
    if len(pair) != 2 or not pair[0] <= pair[1]:
        raise DataError(
            f"{source}: attribute {' and '.join(present)}: expected a lower and an upper limit, found {pair}"
        )
    return (pair[0], pair[1]), of_codes


def _outside(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns where values exceed limits that may have been rounded to another type."""
    if values.dtype.kind == "f":
        low, high = low - _ROUNDING * abs(low), high + _ROUNDING * abs(high)
    return np.asarray((values < low) | (values > high))


def months_of(path: Path, variables: Variables, name: str) -> np.ndarray:
    """Returns the months `(T,)`, datetime64[M], that the time stamps of a file lie in, in any calendar.

    If the stamps have bounds, the midpoint counts, because climate models stamp a mean with its end.

    Args:
        path: For messages.
        variables: Variables of the file.
        name: The time variable.

    Raises:
        DataError: units or calendar are not those of CF, stamps are missing, or there is more than one axis.
    """
    variable = variables[name]
    stamps = _stamps(variable, f"{path}: {name}")
    if stamps.ndim > 1 or not np.isfinite(stamps).all():
        raise DataError(f"{path}: {name}: expected one axis of times, found shape {stamps.shape} or missing times")
    stamps = np.atleast_1d(stamps)
    bounds = variables.get(text(variable, "bounds"))
    if bounds is not None and tuple(bounds.shape) == (len(stamps), 2):
        first, last = _stamps(bounds, f"{path}: {text(variable, 'bounds')}").T
        if ((first < last) & (first <= stamps) & (stamps <= last)).all():
            stamps = (first + last) / 2
    return _decoded_months(stamps, text(variable, "units"), text(variable, "calendar", "standard"), f"{path}: {name}")


def _stamps(variable: Variable, source: str) -> np.ndarray:
    """Returns stored times, float64; those just short of the beginning of a month by rounding are corrected."""
    stamps = decoded(variable, source, np.float64)
    if variable.dtype.kind != "f":
        return stamps
    return stamps + np.spacing(np.abs(stamps.astype(variable.dtype.newbyteorder("=")))).astype(np.float64)


def _decoded_months(stamps: np.ndarray, units: str, calendar: str, source: str) -> np.ndarray:
    import cftime

    if re.match(r"\s*months?\s", units, re.IGNORECASE) or calendar.strip() == "360":
        calendar = "360_day"  # the only calendar with months of equal length; IRI's Data Library calls it "360"
    try:
        times = cftime.num2date(stamps, units, calendar.strip().lower() or "standard")
        months = [(time.year - 1970) * 12 + time.month - 1 for time in np.ravel(times)]
    except (ValueError, TypeError, KeyError, OverflowError, AttributeError) as error:
        raise DataError(
            f"{source}: expected times of CF such as 'days since 1800-1-1' in a calendar of CF, found units {units!r} "
            f"and calendar {calendar!r} ({error}). `cdo -r -setcalendar,standard copy IN.nc OUT.nc` rewrites them."
        ) from error
    return np.array(months, np.int64).astype("datetime64[M]")
