"""Records and checkpoints in a bucket of a real S3 server on this machine (moto's server mode)."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faults import tiny
from logged import logged

import bench
from bench.engine.run import run
from bench.errors import RunFailedError
from bench.paths import as_path
from bench.records.store import read_records, write_record

pytestmark = pytest.mark.scaleout


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    given = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    for key, value in {**given, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}.items():
        monkeypatch.setenv(key, value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"bench-{uuid.uuid4().hex[:8]}"  # the server's buckets outlive it within a process
    s3fs.S3FileSystem().mkdir(name)
    yield f"s3://{name}"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.mark.usefixtures("small_model")
def test_a_run_with_records_and_checkpoints_in_a_bucket(bucket: str, storms: Path, tmp_path: Path) -> None:
    remote = [f"results.root={bucket}/results", f"train.checkpoints={bucket}/checkpoints"]
    first = run(tiny(storms, tmp_path / "a", *remote), training=True).record
    with logged() as lines:
        again = run(tiny(storms, tmp_path / "b", *remote), training=True).record
    assert any("training had ended" in line for line in lines), "another machine finds the weights in the bucket"
    assert again.counts == first.counts and again.checkpoint_sha256 == first.checkpoint_sha256
    assert len(read_records(f"{bucket}/results")[0]) == 2
    names = {path.name for path in as_path(f"{bucket}/checkpoints", "x").rglob("*") if path.suffix}
    assert names == {"best.ckpt", "last.ckpt", "previous.ckpt", "training.json"}


def test_concurrent_writers_lose_and_replace_nothing(bucket: str, storms: Path) -> None:
    record = bench.evaluate("persistence", bench.load_task("sevir", storms), device="cpu")
    many = [record.model_copy(update={"run_id": f"r{number}"}) for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: write_record(one, bucket), many))
    records, problems = read_records(bucket)
    assert len(records) == 40 and not problems
    with pytest.raises(RunFailedError, match="cannot be written"):
        write_record(many[0], bucket)
