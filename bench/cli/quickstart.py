"""`earthbench quickstart`: from generated data to a table and a picture, in three minutes on a laptop."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from bench.cli.printing import print
from bench.errors import DataError, RunFailedError
from bench.logs import shown_on

_EVENTS = {"train": 64, "val": 8, "test": 12}
_SIZE = 64
# A small UNet and about 200 steps: enough to beat persistence, in about a minute on two cores.
_TRAINING = (
    "model.channels=[16,32,64]", "model.center_channels=128", "model.norm_momentum=0.1", "data.batch_size=8",
    "train.max_epochs=8", "train.lr=2e-3", "train.early_stopping.monitor=val/mse",
)  # fmt: skip
_COLUMNS = ("csi_m", "csi_16", "csi_74", "csi_133", "mse")
EXAMPLES = ("earthbench quickstart --out quickstart",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("--out", type=Path, help="where data, records and picture go (default: a cache folder)")
    parser.add_argument("--seed", type=int, default=0)


def run(options: argparse.Namespace) -> int:
    """Makes storms, trains UNet, evaluates it and persistence, draws a picture and prints the table."""
    import platformdirs
    from rich.progress import Progress

    from bench.cli.table import print_table
    from bench.config import compose
    from bench.config.overrides import literal
    from bench.data.sevir.synthetic import make_sevir
    from bench.data.transfer.manifest import origin
    from bench.engine.run import run as run_pipeline
    from bench.records.store import read_records
    from bench.tables import load_table
    from bench.tables.cells import table_data
    from bench.tables.look import Look
    from bench.tables.pictures import draw_forecasts
    from bench.tables.render import text_of
    from bench.tables.terminal import narrowed
    from bench.tasks.sevir import Sevir

    started = time.perf_counter()
    out = options.out or Path(platformdirs.user_cache_dir("earthbench")) / "quickstart"
    data = out / f"storms-{_SIZE}-seed{options.seed}"
    if not (data / "CATALOG.csv").exists():
        print(f"[1/4] making {sum(_EVENTS.values())} storms in {data}")
        with Progress(transient=True) as progress:
            bar = progress.add_task("storms", total=sum(_EVENTS.values()))
            make_sevir(data, events=_EVENTS, size=_SIZE, seed=options.seed, advance=lambda *_: progress.advance(bar))
    elif origin(data) != "synthetic storms":
        raise DataError(f"{data} holds data that this command did not make; choose another folder with --out")
    else:
        print(f"[1/4] storms are in {data}")

    common = [
        f"data.root={literal(str(data))}", f"results.root={literal(str(out / 'results'))}",
        f"work={literal(str(outputs_of_code(out)))}", f"seed={options.seed}", "picture=false",
    ]  # fmt: skip
    print("[2/4] persistence")
    with shown_on("stdout"):
        persistence = run_pipeline(compose(["model=persistence", "progress=false", *common]), training=False)
    print("[3/4] UNet: training and evaluation (a second call finds the trained weights)")
    with shown_on("stdout"):
        unet = run_pipeline(compose(["model=unet", *_TRAINING, *common]), training=True)
    picture = draw_forecasts(
        out / "quickstart.png",
        context=unet.sample["context"],
        target=unet.sample["target"],
        forecasts={"UNet": unet.sample["forecast"], "persistence": persistence.sample["forecast"]},
        look=Look.of(Sevir),
        cadence_minutes=5,
        title="Synthetic storm: context, target and two forecasts",
    )
    print("[4/4] table")
    table = load_table("runs/sevir")
    fresh = {persistence.record.run_id, unet.record.run_id}
    records = [r for r in read_records(out / "results", "sevir")[0] if r.run_id in fresh]
    contents = table_data(table, None, records)
    if sys.stdout.isatty():
        print_table(*narrowed(table, contents, _COLUMNS), records)
        print()
    else:
        print(text_of(table, None, contents, "md"))
    print(f"records: {persistence.record_path}\n         {unet.record_path}\npicture: {picture}")
    errors = [outcome.record.scores["mse"] or float("inf") for outcome in (unet, persistence)]
    if not errors[0] < errors[1]:
        raise RunFailedError(
            f"UNet (MSE {errors[0]:.3e}) does not beat persistence ({errors[1]:.3e}): please report this"
        )
    print(f"UNet beats persistence: MSE {errors[0]:.3e} < {errors[1]:.3e}, after {time.perf_counter() - started:.0f} s")
    print(
        "next: earthbench list; earthbench table earthformer/sevir; earthbench run task=sevir model=unet data.root=DIR"
    )
    return 0


def outputs_of_code(out: Path) -> Path:
    """Returns the folder of trained weights, one per version of the code: weights of another version are refused."""
    from bench import registry
    from bench.config import fingerprint
    from bench.records.sources import sources_of

    model, task = registry.find("model", "unet").load(), registry.find("task", "sevir").load()
    return out / "outputs" / fingerprint([part.sha256 for part in sources_of(model, task, ()).values()])[:10]
