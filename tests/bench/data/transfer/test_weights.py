from __future__ import annotations

import hashlib
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from servers import Faults, Server, serving

from bench import registry
from bench.cli.main import main
from bench.data.transfer.http import RetryPolicy
from bench.data.transfer.weights import check_checkpoint, fetch_weights
from bench.errors import DataError

QUICK = RetryPolicy(tries=2, wait_s=0.01, timeout_s=Faults().timeout_s)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "www").mkdir()
    torch.save({"weight": torch.arange(30_000.0)}, tmp_path / "www/model.pt")
    with serving(tmp_path / "www") as running:
        running.faults = Faults(etag=None)
        yield running


def test_the_digest_of_the_first_download_is_pinned(server: Server, tmp_path: Path) -> None:
    url, folder = f"{server.url}/model.pt", tmp_path / "cache"
    path = fetch_weights(url, folder, policy=QUICK).path
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (folder / "model.pt.sha256").read_text() == f"{digest}  model.pt\n"
    requests = len(server.requests)
    assert fetch_weights(url, folder, policy=QUICK).sha256 == digest
    assert len(server.requests) == requests, "nothing is asked for again"
    # changed on disk
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match=f"expected sha256 {digest}"):
        fetch_weights(url, folder, policy=QUICK)
    assert not path.exists()
    # changed on the server
    torch.save({"weight": torch.zeros(30_000)}, server.root / "model.pt")
    with pytest.raises(DataError, match=f"expected sha256 {digest}"):
        fetch_weights(url, folder, policy=QUICK)
    assert not path.exists()


@pytest.mark.parametrize(
    ("faults", "message"),
    [(Faults(etag=None, flip=60_000), "has changed since it was written"), (Faults(status=404), "404")],
)
def test_bad_weights_never_get_the_final_name(server: Server, tmp_path: Path, faults: Faults, message: str) -> None:
    server.faults = faults
    with pytest.raises(DataError, match=message):
        fetch_weights(f"{server.url}/model.pt", tmp_path / "cache", policy=QUICK)
    assert not (tmp_path / "cache/model.pt").exists() and not (tmp_path / "cache/model.pt.sha256").exists()


def test_cut_downloads_resume(server: Server, tmp_path: Path) -> None:
    size = (server.root / "model.pt").stat().st_size
    server.faults = Faults(cut_after=size // 3, times=2)
    fetch_weights(f"{server.url}/model.pt", tmp_path / "cache", policy=QUICK)
    assert server.sent == size


@pytest.mark.parametrize("content", [b"", b"<html>login</html>", b"PK\x03\x04 but not a zip"])
def test_files_that_are_not_checkpoints_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match="checkpoint"):
        check_checkpoint(tmp_path / "x")


def test_three_checkpoint_formats_are_accepted(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.save({"w": torch.ones(3)}, tmp_path / "new")
    torch.save({"w": torch.ones(3)}, tmp_path / "old", _use_new_zipfile_serialization=False)
    save_file({"w": torch.ones(3)}, tmp_path / "safe")
    for name in ("new", "old", "safe"):
        check_checkpoint(tmp_path / name)


def test_the_command_prints_the_path_and_how_to_load_it(server: Server, tmp_path: Path, capsys, monkeypatch) -> None:
    released = types.SimpleNamespace(url=f"{server.url}/model.pt", usage='torch.load("{path}", weights_only=True)')
    monkeypatch.setattr(registry.Entry, "load", lambda self: released)
    words = ["data", "fetch", "weights/earthformer_sevir", "--out", str(tmp_path / "w")]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert str(tmp_path / "w/model.pt") in out and f'torch.load("{tmp_path}/w/model.pt"' in out and "sha256 " in out
    assert main(["data", "fetch", "weights/earthfromer_sevir"]) == 2
    assert "Did you mean 'earthformer_sevir'" in capsys.readouterr().err
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "cache" / name))
    assert main(words[:3]) == 0
    assert str(tmp_path / "cache/earthbench/weights/model.pt") in capsys.readouterr().out


def test_the_released_checkpoints_are_registered() -> None:
    for name, file in {
        "earthformer_sevir": "earthformer_sevir.pt",
        "earthformer_icar_enso": "earthformer_icarenso2021.pt",
        "earthformer_earthnet": "earthformer_earthnet2021.pt",
    }.items():
        released = registry.find("weight", name).load()
        assert released.url == f"https://earthformer.s3.amazonaws.com/pretrained_checkpoints/{file}"
        assert "weights_only=True" in released.usage and '"{path}"' in released.usage


@pytest.mark.parametrize("part", ["autoencoder", "denoiser", "alignment"])
def test_a_dead_link_advises_using_a_local_file(part: str, tmp_path: Path, capsys) -> None:
    assert main(["data", "fetch", f"weights/prediff_{part}", "--out", str(tmp_path / "w")]) == 2
    said = capsys.readouterr().err
    assert "is dead" in said and f"train.stages.{part}.checkpoint=FILE" in said and f"load_{part}(config" in said
    assert not (tmp_path / "w").exists()
