"""Event files of every kind: the right pixels, or one error that names the file."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from sevir_files import IDS, NAME, SHAPE, Write, create, made_codes, write_events

import bench
from bench.cli.main import main
from bench.data.sevir.files import other_order
from bench.errors import DataError


def _virtual(source: str, fill: int = 0) -> Write:
    def write(file: h5py.File, codes: np.ndarray) -> None:
        layout = h5py.VirtualLayout(shape=codes.shape, dtype="u1")
        layout[:] = h5py.VirtualSource(source, "vil", shape=codes.shape)
        file.create_virtual_dataset("vil", layout, fillvalue=fill)

    return write


def _outside(file: h5py.File, codes: np.ndarray) -> str:
    """Writes the codes into another file beside this one, and something else at the same place of this one."""
    path = Path(file.filename).with_name("outside.h5")
    with h5py.File(path, "w") as other:
        other["vil"] = codes
    file["mask"] = np.random.default_rng(1).integers(0, 255, codes.shape, np.uint8)
    return str(path)


def _linked(file: h5py.File, codes: np.ndarray) -> None:
    file["vil"] = h5py.ExternalLink(_outside(file, codes), "/vil")


def _linked_twice(file: h5py.File, codes: np.ndarray) -> None:
    file["other"] = h5py.ExternalLink(_outside(file, codes), "/")
    file["vil"] = h5py.SoftLink("/other/vil")


def _ids_linked(file: h5py.File, codes: np.ndarray) -> None:
    path = Path(file.filename).with_name("ids.h5")
    with h5py.File(path, "w") as other:
        other["id"] = IDS
    file["vil"], file["id"] = codes, h5py.ExternalLink(str(path), "/id")


def _virtual_that_is_there(file: h5py.File, codes: np.ndarray) -> None:
    _virtual(_outside(file, codes))(file, codes)


def _virtual_of_itself(file: h5py.File, codes: np.ndarray) -> None:
    file["real"] = codes
    layout = h5py.VirtualLayout(shape=codes.shape, dtype="u1")
    layout[:2] = h5py.VirtualSource(file["real"])[:2]
    file.create_virtual_dataset("vil", layout, fillvalue=0)


def _raw_file(file: h5py.File, codes: np.ndarray) -> None:
    raw = Path(file.filename).with_name("raw.bin")
    raw.write_bytes(codes.tobytes())
    file.create_dataset("vil", codes.shape, "u1", external=[(str(raw), 0, codes.nbytes)])


def _dataset(**options) -> Write:
    """Writes nothing into a declared dataset."""
    return lambda file, codes: file.create_dataset("vil", **({"shape": codes.shape, "dtype": "u1"} | options))


def _partly(chunks: tuple[int, ...] | None, fill: int = 0) -> Write:
    def write(file: h5py.File, codes: np.ndarray) -> None:
        array = file.create_dataset("vil", codes.shape, "u1", chunks=chunks, fillvalue=fill)
        array[:2] = codes[:2]

    return write


def _reference(kind: object) -> Write:
    def write(file: h5py.File, codes: np.ndarray) -> None:
        file["real"] = codes
        array = file.create_dataset("vil", codes.shape, kind)
        array[0, 0, 0, 0] = file["real"].regionref[:] if kind is h5py.regionref_dtype else file["real"].ref

    return write


def _ids(values: object, **options) -> Write:
    def write(file: h5py.File, codes: np.ndarray) -> None:
        file["vil"] = codes
        file.create_dataset("id", **({"data": values} if values is not None else {}), **options)

    return write


def _unknown_filter(file: h5py.File, codes: np.ndarray) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((1, *codes.shape[1:]))
    properties.set_filter(32999, h5py.h5z.FLAG_OPTIONAL, ())
    space = h5py.h5s.create_simple(codes.shape)
    array = h5py.h5d.create(file.id, b"vil", h5py.h5t.STD_U8LE, space, dcpl=properties)
    for number, event in enumerate(codes):
        array.write_direct_chunk((number, 0, 0, 0), event.tobytes())


_REFUSED: dict[str, tuple[Write, str]] = {
    "external link": (_linked, "is a link to /vil in .*outside.h5"),
    "soft link through an external one": (_linked_twice, "lies in .*outside.h5"),
    "ids by an external link": (_ids_linked, "'id' is a link to /id in .*ids.h5"),
    "virtual, no source": (_virtual("gone.h5"), "virtual dataset, made of gone.h5, of which gone.h5 is missing"),
    "virtual, no source, filled": (_virtual("gone.h5", 7), "gone.h5 is missing"),
    "virtual": (_virtual_that_is_there, "virtual dataset, made of .*outside.h5; the events must lie in the file"),
    "virtual, partly of itself": (_virtual_of_itself, "virtual dataset"),
    "bytes in a raw file": (_raw_file, "the bytes of 'vil' lie in .*raw.bin"),
    "object references": (_reference(h5py.ref_dtype), "expected uint8"),
    "region references": (_reference(h5py.regionref_dtype), "expected uint8"),
    "link that dangles": (lambda f, c: f.__setitem__("vil", h5py.SoftLink("/no")), "link to /no, which is not there"),
    "group": (lambda f, c: f.create_group("vil"), "'vil' is a group; expected a dataset"),
    "type": (lambda f, c: f.__setitem__("vil", np.dtype("u1")), "'vil' is a datatype; expected a dataset"),
    "nothing": (lambda f, c: None, "no dataset 'vil'; found id"),
    "null": (lambda f, c: f.__setitem__("vil", h5py.Empty("u1")), "expected uint8"),
    "float 0..1": (lambda f, c: f.__setitem__("vil", (c / 255).astype("f4")), "is float32 with shape"),
    "float with NaN": (lambda f, c: f.__setitem__("vil", np.full(SHAPE, np.nan)), "is float64 with shape"),
    "int16": (lambda f, c: f.__setitem__("vil", c.astype("i2") - 100), "is int16 with shape"),
    "big-endian uint16": (lambda f, c: f.__setitem__("vil", (c.astype("u2") * 2).astype(">u2")), "is >u2 with shape"),
    "bool": (lambda f, c: f.__setitem__("vil", c > 9), "is bool with shape"),
    "compound": (lambda f, c: f.__setitem__("vil", c.view([("vil", "u1")])), "expected uint8"),
    "three axes": (lambda f, c: f.__setitem__("vil", c[0]), "expected uint8 .N, H, W, T."),
    "no pixels": (_dataset(shape=(4, 8, 0, 49)), "declares 4 events of 8x0x49"),
    "never written": (_dataset(), "never, or not wholly, written: R0 at index 0, R1 at index 1"),
    "never written, filled": (_dataset(fillvalue=9), "never, or not wholly, written: R0 at index 0"),
    "chunks never written": (_dataset(chunks=(1, 8, 10, 49)), "written: R0 at index 0"),
    "half of the chunks written": (_partly((1, 4, 10, 49)), "written: R2 at index 2, R3 at index 3$"),
    "half of a chunk row written": (
        lambda f, c: f.create_dataset("vil", c.shape, "u1", chunks=(2, 4, 10, 49)).write_direct(
            c, np.s_[:, :4], np.s_[:, :4]
        ),
        "written: R0 at index 0, R1 at index 1, R2 at index 2, R3 at index 3",
    ),
    "huge frames": (_dataset(shape=(4, 200_000, 200_000, 25)), "declares 4 events of 200000x200000x25"),
    "huge frames in chunks": (_dataset(shape=(4, 200_000, 200_000, 25), chunks=(1, 99, 99, 25)), "declares 4 events"),
    "huge chunks": (_dataset(maxshape=(None,) * 4, chunks=(1, 60_000, 60_000, 1)), "has chunks of 3600000000 bytes"),
    "endless events": (_dataset(shape=(2_000_000_000, 8, 10, 49)), "declares 2000000000 events"),
    "endless ids": (_ids(None, shape=(2_000_000_000,), dtype="S16"), r"'id' is \|S16 with shape \(2000000000,\)"),
    "long ids": (_ids(None, shape=(4,), dtype="S4000000"), "'id' is"),
    "ids never written": (_ids(None, shape=(4,), dtype="S16"), "'id' was declared but never"),
    "ids of other number": (_ids(IDS[:3]), r"'id' is object with shape \(3,\)"),
    "ids as numbers with a point": (_ids(np.arange(4.0)), "'id' is float64"),
    "ids as a scalar": (_ids(b"R0"), r"with shape \(\)"),
    "ids as a group": (
        lambda f, c: (f.__setitem__("vil", c), f.create_group("id")),
        "'id' is a group; expected a dataset",
    ),
    "ids swapped": (_ids([b"R0", b"R2", b"R1", b"R3"]), "index 1 holds 'R2', the catalogue says 'R1'"),
    "ids doubled": (_ids([b"R0", b"R0", b"R2", b"R3"]), "index 1 holds 'R0', the catalogue says 'R1'"),
    "filter that is not here": (_unknown_filter, "packed with HDF5 filter 32999 .*HDF5_PLUGIN_PATH"),
}  # fmt: skip


@pytest.mark.parametrize("kind", _REFUSED)
def test_a_broken_file_is_refused_by_reader_and_check(tmp_path: Path, kind: str, capsys) -> None:
    write, message = _REFUSED[kind]
    root = write_events(tmp_path, write)
    with pytest.raises(DataError, match=f"(?s){NAME}.*{message}".replace("$", r"(\n|$)")):
        bench.load_task("sevir", root).dataset("test")
    assert main(["data", "check", "sevir", "--root", str(root)]) == 2
    captured = capsys.readouterr()
    assert NAME in captured.err and "no problems" not in captured.out


def _space_padded(file: h5py.File, codes: np.ndarray) -> None:
    file["vil"] = codes
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(8)
    kind.set_strpad(h5py.h5t.STR_SPACEPAD)
    array = h5py.h5d.create(file.id, b"id", kind, h5py.h5s.create_simple((4,)))
    array.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array([name.ljust(8) for name in IDS]), kind)


def _compact(file: h5py.File, codes: np.ndarray) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple(codes.shape)
    h5py.Dataset(h5py.h5d.create(file.id, b"vil", h5py.h5t.STD_U8LE, space, dcpl=properties))[...] = codes


def _few_bits(file: h5py.File, codes: np.ndarray) -> None:
    """Codes 0..15 in the upper half of each byte: h5py reports uint8, but the raw bytes are sixteen times as large."""
    kind = h5py.h5t.STD_U8LE.copy()
    kind.set_precision(4)
    kind.set_offset(4)
    array = h5py.h5d.create(file.id, b"vil", kind, h5py.h5s.create_simple(codes.shape))
    array.write(h5py.h5s.ALL, h5py.h5s.ALL, codes % 16, h5py.h5t.NATIVE_UINT8)


_READ: dict[str, Write] = {
    "plain": create(),
    "in chunks": create(chunks=(1, 4, 5, 49)),
    "several events in a chunk": create(chunks=(3, 8, 10, 7)),
    "chunks of HDF5's choice": create(chunks=True),
    "gzip, shuffle, checksum": create(compression="gzip", shuffle=True, fletcher32=True),
    "lzf": create(compression="lzf"),
    "scale-offset": create(scaleoffset=0),
    "may grow": create(maxshape=(None, 8, 10, 49)),
    "of the header": _compact,
    "soft link": lambda f, c: (f.__setitem__("g/real", c), f.__setitem__("vil", h5py.SoftLink("/g/real"))),
    "hard link": lambda f, c: (f.__setitem__("g/real", c), f.__setitem__("vil", f["g/real"])),
    "many attributes": lambda f, c: f.create_dataset("vil", data=c).attrs.update({"a": np.arange(9), "units": "?"}),
    "beside others": lambda f, c: (f.__setitem__("a", c[::-1]), f.__setitem__("vil", c), f.__setitem__("z", c)),
    "ids of free length": _ids(IDS, dtype=h5py.string_dtype("utf-8")),
    "ids of free length, ASCII": _ids(IDS, dtype=h5py.string_dtype("ascii")),
    "ids padded with zeros": _ids(np.array(IDS, "S16")),
    "ids padded with spaces": _space_padded,
    "ids in chunks": _ids(np.array(IDS), chunks=(3,), compression="gzip"),
}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, {}) for kind in _READ),
        ("plain", {"userblock_size": 1024}),
        ("in chunks", {"userblock_size": 1024}),
        ("plain", {"libver": "latest"}),
        ("in chunks", {"libver": "latest"}),
    ],
)
def test_an_unusual_file_is_read_correctly(tmp_path: Path, kind: str, options: dict) -> None:
    root = write_events(tmp_path, _READ[kind], **options)
    data = bench.load_task("sevir", root).dataset("test")
    for index in range(len(data)):
        event, window = divmod(index, 3)
        expected = made_codes()[event].transpose(2, 0, 1)[window * 12 :][:25, ..., None]
        assert np.array_equal(np.concatenate([part.numpy() for part in data.stored(index)]), expected)
    assert main(["data", "check", "sevir", "--root", str(root)]) == 0


def test_codes_with_partial_precision_are_read_by_hdf5(tmp_path: Path) -> None:
    data = bench.load_task("sevir", write_events(tmp_path, _few_bits, columns={"data_max": 15.0})).dataset("test")
    assert np.array_equal(data.stored(3)[0].numpy()[..., 0], made_codes()[1].transpose(2, 0, 1)[:13] % 16)


@pytest.mark.parametrize(("chunks", "fill"), [(None, 0), ((4, 8, 10, 49), 0), ((4, 8, 10, 49), 7)])
def test_a_constant_event_that_contradicts_the_catalogue_is_refused(
    tmp_path: Path, chunks: tuple[int, ...] | None, fill: int, capsys
) -> None:
    """An interrupted writer: the array, or the chunk, has room for all events, but the last two are missing."""
    root = write_events(tmp_path, _partly(chunks, fill))
    data = bench.load_task("sevir", root).dataset("test")
    data.stored(5)
    message = f"event R2 at index 2 is {fill} throughout, but the catalogue says data_max = 254"
    with pytest.raises(DataError, match=message):
        data.stored(6)
    with pytest.raises(DataError, match=message):
        data[6]
    assert main(["data", "check", "sevir", "--root", str(root)]) == 2
    assert message in (error := capsys.readouterr().err) and "event R3" in error
    words = ["evaluate", "task=sevir", "model=persistence", f"data.root={root}", f"results.root={tmp_path / 'r'}"]
    for workers in (0, 1):  # a loader's process says it in the same words
        assert main([*words, f"work={tmp_path / 'w'}", "progress=false", f"data.num_workers={workers}"]) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1
    assert not list((tmp_path / "r").rglob("*.json"))


def test_an_event_without_echo_in_the_catalogue_is_read(tmp_path: Path, capsys) -> None:
    columns = {"data_max": [254.0, 254.0, 0.0, np.nan]}
    root = write_events(tmp_path, _partly(None), columns=columns)
    assert not bench.load_task("sevir", root).dataset("test").stored(9)[1].any()
    assert main(["data", "check", "sevir", "--root", str(root)]) == 0
    assert "event R2 is constant (0)" in capsys.readouterr().out


def test_a_split_of_only_constant_events_is_a_problem(tmp_path: Path, capsys) -> None:
    root = write_events(tmp_path, create(), codes=np.full(SHAPE, 9, np.uint8), columns={"data_max": 9.0})
    assert main(["data", "check", "sevir", "--root", str(root)]) == 2
    assert "split test: each of its 4 events is constant" in capsys.readouterr().err


def test_events_without_data_are_skipped_individually(tmp_path: Path) -> None:
    root = write_events(tmp_path, _partly((1, 8, 10, 49)))
    data = bench.load_task("sevir", root, skip_missing=True).dataset("test")
    assert data.ids == ("R0", "R1") and data.incomplete == "2 events skipped: R2, R3"
    none = write_events(tmp_path / "none", _dataset())
    data = bench.load_task("sevir", none, skip_missing=True).dataset("test")
    assert len(data) == 0 and data.why_empty == "All 4 events are left out by task.skip_missing. "


def test_conversion_does_not_turn_unwritten_events_into_dry_scenes(tmp_path: Path, capsys) -> None:
    """Not even of an event that no task reads."""
    root = write_events(tmp_path / "sevir", _partly((1, 8, 10, 49)), columns={"pct_missing": [0.0, 0.0, 0.5, 0.5]})
    assert main(["data", "convert", "sevir", "sevir_lr", "--root", str(root), "--out", str(tmp_path / "low")]) == 2
    assert "2 events were never, or not wholly, written (the first at index 2)" in capsys.readouterr().err
    assert not list(tmp_path.rglob("low/**/*.h5"))


@pytest.mark.parametrize("name", ["sevir", "radar"])
@pytest.mark.parametrize(("order", "told"), [("NTHW", True), ("NHTW", True), ("NTHW", False)])
def test_axes_in_another_order_are_refused(tmp_path: Path, name: str, order: str, told: bool) -> None:
    codes = made_codes((4, 10, 10, 49)).transpose([dict(zip("NHWT", range(4), strict=True))[axis] for axis in order])
    sizes = {"size_y": 10, "size_x": 10} if told else {"size_y": "", "size_x": "", "minute_offsets": ""}
    root = write_events(tmp_path, create(), codes=codes, columns=sizes)
    axes = r"\(N, T, H, W\)" if order == "NTHW" else r"\(N, H, T, W\)"
    task = bench.load_task(name, root, t_in=3, t_out=2)
    with pytest.raises(DataError, match=f"axes seem to lie as {axes}"):
        task.dataset("test")
    with pytest.raises(DataError, match="axes seem to lie"):
        _ = task.input_shape


@pytest.mark.parametrize(
    ("shape", "size", "frames", "order"),
    [
        ((384, 384, 49), (384, 384), 49, None),
        ((49, 384, 384), (384, 384), 49, "(N, T, H, W)"),
        ((384, 49, 384), (384, 384), 49, "(N, H, T, W)"),
        ((128, 128, 25), (384, 384), 49, None),  # the authors' SEVIR-LR beside SEVIR's catalogue
        ((25, 128, 128), (384, 384), 49, "(N, T, H, W)"),
        ((43, 43, 25), (128, 128), 49, None),  # filled up at the far edges
        ((384, 384, 30), (384, 384), 49, None),  # cut by hand, catalogue unchanged
        ((30, 384, 384), (384, 384), 49, "(N, T, H, W)"),
        ((30, 384, 384), None, None, "(N, T, H, W)"),
        ((49, 30, 40), None, None, "(N, T, H, W)"),
        ((30, 40, 49), None, None, None),
        ((64, 64, 12), None, None, None),
        ((49, 49, 49), (49, 49), 49, None),  # as the format says, where both fit
        ((25, 32, 25), (25, 32), 25, None),
        ((32, 25, 25), (25, 32), 25, None),  # height and width swapped in the catalogue
        ((12, 20, 20), None, 20, None),
    ],
)
def test_the_catalogue_resolves_the_order_of_axes(shape, size, frames, order) -> None:
    assert other_order(shape, size, frames) == order
