"""Event files of any layout: the intended pixels, or one error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

import bench
from bench.errors import DataError

_T_IN, _T_OUT = 3, 2
_ORDERS = {"NHWT": (0, 1, 2, 3), "NTHW": (0, 3, 1, 2), "NHTW": (0, 1, 3, 2), "HWTN": (1, 2, 3, 0), "TNHW": (3, 0, 1, 2)}
_TEXT = st.text(st.characters(exclude_characters="\0/", codec="utf-8"), min_size=1, max_size=4)
_LAYOUTS = st.fixed_dictionaries(
    {
        "where": st.sampled_from(
            ["here", "here", "here", "soft link", "dangling link", "external link", "link to a linked group", "group",
             "virtual", "virtual without its source", "raw file", "nothing", "reference"]
        ),
        "order": st.sampled_from(["NHWT", "NHWT", *_ORDERS]),
        "dtype": st.sampled_from(["u1", "u1", "u1", "u1", "i1", "<u2", ">u2", "f4", "f8", "?", "scaled"]),
        "storage": st.sampled_from(["contiguous", "chunked", "chunked", "compact"]),
        "chunks": st.tuples(*[st.integers(1, 6)] * 4),
        "filters": st.fixed_dictionaries(
            {}, optional={"compression": st.sampled_from(["gzip", "lzf"]), "shuffle": st.just(True),
                          "fletcher32": st.just(True), "scaleoffset": st.just(0)}
        ),
        "fill": st.sampled_from([0, 0, 7, 255]),
        "unwritten": st.sets(st.integers(0, 3), max_size=4),
        "ids": st.sampled_from(["fixed", "free", "none", "short", "swapped", "numbers", "unwritten", "huge"]),
        "file": st.sampled_from([{}, {}, {"userblock_size": 512}, {"libver": "latest"}]),
        "attributes": st.dictionaries(_TEXT, st.integers(0, 9) | _TEXT, max_size=3),
        "sizes": st.tuples(st.integers(1, 4), st.integers(2, 7), st.integers(2, 7), st.integers(5, 9)),
        "told": st.booleans(),
        "declared": st.sampled_from([None, None, None, None, (4, 200_000, 200_000, 25), (2_000_000_000, 4, 4, 5)]),
    }
)  # fmt: skip


def _codes(sizes: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(sum(sizes)).integers(0, 255, sizes, np.uint8)


def _dataset(file: h5py.File, name: str, codes: np.ndarray, layout: dict[str, Any], path: Path) -> None:
    """Writes some events of codes `(N,H,W,T)` in the given layout."""
    order = _ORDERS[layout["order"]]
    kind = "f4" if layout["dtype"] == "scaled" else layout["dtype"]
    values = (codes / 255 if layout["dtype"] == "scaled" else codes).transpose(order)
    shape = layout["declared"] or values.shape
    options: dict[str, Any] = {}
    if layout["where"] == "raw file":
        (path.parent / "raw.bin").write_bytes(values.astype(kind).tobytes())
        file.create_dataset(name, shape, kind, external=[(str(path.parent / "raw.bin"), 0, h5py.h5f.UNLIMITED)])
        return
    if layout["storage"] == "chunked":
        options = {
            "chunks": tuple(min(*pair) for pair in zip(layout["chunks"], shape, strict=True)),
            **layout["filters"],
        }
        if np.dtype(kind).kind not in "iu":
            options.pop("scaleoffset", None)
        if "scaleoffset" in options:  # HDF5 takes no second checksum there, h5py says so
            options.pop("fletcher32", None)
    if layout["storage"] == "compact" and not layout["declared"]:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple(shape)
        h5py.h5d.create(
            file.id, name.encode(), h5py.h5t.py_create(np.dtype(kind), logical=True), space, dcpl=properties
        )
        array = file[name]
    else:
        array = file.create_dataset(
            name, shape, kind, fillvalue=None if kind == "?" else min(layout["fill"], 127), **options
        )
    if layout["declared"]:
        return
    for number in range(len(codes)):
        if number not in layout["unwritten"]:
            at = [slice(None)] * 4
            at[order.index(0)] = number  # type: ignore[call-overload]
            array[tuple(at)] = values[tuple(at)]


def _write(path: Path, codes: np.ndarray, layout: dict[str, Any]) -> None:
    where = layout["where"]
    with h5py.File(path, "w", **layout["file"]) as file, h5py.File(path.parent / "outside.h5", "w") as other:
        if where in ("here", "raw file"):
            _dataset(file, "vil", codes, layout, path)
        elif where == "soft link":
            _dataset(file, "real", codes, layout, path)
            file["vil"] = h5py.SoftLink("/real")
        elif where in ("external link", "link to a linked group", "virtual"):
            file["decoy"] = codes[::-1] ^ 1
            _dataset(other, "vil", codes, layout, path)
            if where == "external link":
                file["vil"] = h5py.ExternalLink("outside.h5", "/vil")
            elif where == "virtual":
                source = h5py.VirtualLayout(codes.shape, "u1")
                if other["vil"].shape == codes.shape:
                    source[:] = h5py.VirtualSource("outside.h5", "vil", codes.shape)
                file.create_virtual_dataset("vil", source)
            else:
                file["g"] = h5py.ExternalLink("outside.h5", "/")
                file["vil"] = h5py.SoftLink("/g/vil")
        elif where == "virtual without its source":
            source = h5py.VirtualLayout(codes.shape, "u1")
            source[:] = h5py.VirtualSource("gone.h5", "vil", codes.shape)
            file.create_virtual_dataset("vil", source, fillvalue=layout["fill"])
        elif where == "dangling link":
            file["vil"] = h5py.SoftLink("/real")
        elif where == "group":
            file.create_group("vil")
        elif where == "reference":
            file["real"] = codes
            file.create_dataset("vil", codes.shape, h5py.ref_dtype)[0, 0, 0, 0] = file["real"].ref
        names = [f"e{number}" for number in range(len(codes))]
        if layout["ids"] == "unwritten":
            file.create_dataset("id", (len(names),), "S8")
        elif layout["ids"] == "huge":
            file.create_dataset("id", (2_000_000_000,), "S16")
        elif layout["ids"] != "none":
            file["id"] = {
                "fixed": np.array(names, "S5"), "free": names, "short": names[1:] or ["x"], "swapped": names[::-1],
                "numbers": np.arange(len(names)),
            }[layout["ids"]]  # fmt: skip
        if where in ("here", "soft link"):
            file["vil"].attrs.update(layout["attributes"])


def _is_whole(layout: dict[str, Any]) -> bool:
    """Returns whether a file is valid."""
    return (
        layout["where"] in ("here", "soft link")
        and (layout["order"], layout["dtype"], layout["declared"]) == ("NHWT", "u1", None)
        and layout["unwritten"].isdisjoint(range(layout["sizes"][0]))
        and layout["ids"] in ("fixed", "free", "none")
        and (layout["told"] or layout["sizes"][1] == layout["sizes"][2])
    )


def _base(**changes: object) -> dict[str, Any]:
    return {
        "where": "here", "order": "NHWT", "dtype": "u1", "storage": "contiguous", "chunks": (1, 2, 3, 4), "filters": {},
        "fill": 0, "unwritten": set(), "ids": "fixed", "file": {}, "attributes": {}, "sizes": (4, 4, 4, 5),
        "told": True, "declared": None,
    } | changes  # fmt: skip


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large])
@given(_LAYOUTS)
@example(_base())
@example(_base(where="external link"))
@example(_base(where="virtual without its source"))
@example(_base(storage="chunked", unwritten={2, 3}))
@example(_base(unwritten={2, 3}))
@example(_base(order="NTHW"))
@example(_base(declared=(4, 200_000, 200_000, 25)))
def test_any_hdf5_layout_is_read_correctly_or_gives_one_error(tmp_path_factory, layout: dict[str, Any]) -> None:
    count, height, width, frames = layout["sizes"]
    # where the catalogue tells nothing and frames are not square, or fits two orders, nobody can know the order
    assume(layout["order"] == "NHWT" or (frames not in (height, width) and (layout["told"] or height == width)))
    root = tmp_path_factory.mktemp("layout")
    path = root / "data" / "vil/a.h5"
    path.parent.mkdir(parents=True)
    codes = _codes(layout["sizes"])
    _write(path, codes, layout)
    rows = {
        "id": [f"e{number}" for number in range(count)], "file_name": "vil/a.h5", "file_index": range(count),
        "img_type": "vil", "time_utc": "2018-06-01", "pct_missing": 0.0, "data_max": codes.max((1, 2, 3)),
    }  # fmt: skip
    if layout["told"]:
        rows |= {"size_y": height, "size_x": width, "minute_offsets": ":".join(map(str, range(frames)))}
    pd.DataFrame(rows).to_csv(root / "CATALOG.csv", index=False)
    task = bench.load_task("sevir", root, t_in=_T_IN, t_out=_T_OUT, stride=1)
    try:
        data = task.dataset("all")
        windows = [np.concatenate([part.numpy() for part in data.stored(index)]) for index in range(len(data))]
    except DataError as error:
        assert str(path) in str(error) and "\n\n" not in str(error)
        assert task.describe_data(read_everything=True).problems, "the check finds what the reader finds"
        assert not _is_whole(layout)
        return
    per_event = frames - _T_IN - _T_OUT + 1
    assert len(windows) == count * per_event
    for index, found in enumerate(windows):
        event, first = divmod(index, per_event)
        assert np.array_equal(found[..., 0], codes[event].transpose(2, 0, 1)[first : first + _T_IN + _T_OUT])
