"""Two processes (gloo, CPU) against one: the same counts to the bit, the same training to rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from faults import tiny

from bench.data.storms import make_sevir
from bench.errors import ConfigError, InterruptedRunError, RunFailedError
from bench.records.store import read_records
from bench.running.pipeline import run

pytestmark = pytest.mark.scaleout


@pytest.fixture(scope="module")
def storms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a size that ConvLSTM takes."""
    out = tmp_path_factory.mktemp("storms24") / "sevir"
    return make_sevir(out, events={"train": 4, "val": 2, "test": 3}, size=24, seed=1)


# Without batch normalisation, whose running statistics are of the batches a process sees.
_MODEL = ["model=convlstm", "model.hidden=[4,4,4]"]
_TRAIN = ["train.accumulate=2", "train.max_epochs=2", "train.lr=1e-3"]


def _weights(out: Path) -> dict[str, torch.Tensor]:
    (path,) = out.glob("work/*/*/*/checkpoints/last.ckpt")
    return torch.load(path)["state_dict"]


def test_evaluation_by_two_processes_has_the_counts_of_one(storms: Path, tmp_path: Path) -> None:
    """9 sequences in batches of 2: shares of 3 and 2 batches, the last batch short."""
    one = run(tiny(storms, tmp_path / "one", *_MODEL), training=False, say=print)
    two = run(tiny(storms, tmp_path / "two", *_MODEL, "devices=2"), training=False, say=print)
    assert two.record.counts == one.record.counts
    assert two.record.scores.keys() == one.record.scores.keys()
    for name, score in one.record.scores.items():
        assert two.record.scores[name] == (score if score is None else pytest.approx(score, rel=1e-12)), name
    assert two.record.data == one.record.data and two.record.config_fingerprint == one.record.config_fingerprint
    assert all((two.sample[name] == one.sample[name]).all() for name in one.sample)
    assert len(read_records(tmp_path / "two/results")[0]) == 1, "one record, not one per process"


def test_training_by_two_processes_and_by_a_change_of_their_number_is_that_of_one(
    storms: Path, tmp_path: Path, monkeypatch
) -> None:
    import signal

    from bench.running.forecaster import Forecaster

    run(tiny(storms, tmp_path / "one", *_MODEL, *_TRAIN), training=True, say=print)
    run(tiny(storms, tmp_path / "two", *_MODEL, *_TRAIN, "devices=2"), training=True, say=print)
    step = Forecaster.training_step

    def signalled(self: Forecaster, batch: object, batch_index: int) -> object:
        if self.global_step == 1:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch, batch_index)

    with monkeypatch.context() as patch:
        patch.setattr(Forecaster, "training_step", signalled)
        with pytest.raises(InterruptedRunError, match="saved after step 2"):
            run(tiny(storms, tmp_path / "both", *_MODEL, *_TRAIN), training=True, say=print)
    run(tiny(storms, tmp_path / "both", *_MODEL, *_TRAIN, "devices=2"), training=True, say=print)
    one = _weights(tmp_path / "one")
    for other in ("two", "both"):
        for key, value in _weights(tmp_path / other).items():
            assert torch.allclose(value, one[key], rtol=1e-4, atol=1e-6), (other, key)


def test_what_one_of_two_processes_ends_with_reaches_the_command(storms: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match=r"diverged|not finite|is nan|is inf"):
        run(
            tiny(storms, tmp_path, *_MODEL, "train.accumulate=2", "devices=2", "train.lr=1e30", "train.clip_norm=null"),
            training=True,
            say=print,
        )
    assert {record.status for record in read_records(tmp_path / "results")[0]} == {"failed"}


def test_batches_that_cannot_be_shared_are_refused(storms: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be shared by 2 processes.*multiple of 2"):
        run(tiny(storms, tmp_path, *_MODEL, "devices=2"), training=True, say=print)
