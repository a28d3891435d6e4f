"""`earthbench evaluate`: scores of a checkpoint, or of a model that has nothing to train."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from bench.cli.printing import print
from bench.config import compose
from bench.logs import shown_on

if TYPE_CHECKING:
    from bench.engine.run import Outcome


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="Hydra overrides, e.g. task=sevir model=persistence data.root=DIR split=all checkpoint=FILE",
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="json: the record, on stdout")


def run(options: argparse.Namespace) -> int:
    """Evaluates and prints what came of it."""
    config = compose(options.overrides)
    from bench.engine.run import run as run_pipeline

    with shown_on("stderr" if options.format == "json" else "stdout"):
        outcome = run_pipeline(config, training=False)
    if options.format == "json":
        print(outcome.record.model_dump_json(indent=1))
    else:
        print_outcome(outcome)
    return 0


def print_outcome(outcome: Outcome) -> None:
    """Prints a record's main scores and where record and picture lie."""
    record = outcome.record
    assert record.data is not None
    convention = ", ".join(sorted({str(o["convention"]) for o in record.conventions.values() if "convention" in o}))
    print(
        f"{record.model.name} on {record.task.name}, {record.data.split} split: {record.data.sequence_count} sequences "
        f"({record.scope}{': ' + record.scope_because if record.scope_because else ''}), "
        f"{record.time.evaluation_s:.1f} s" + (f"; convention {convention}" if convention else "")
    )
    for name, value in record.scores.items():
        if (
            name.endswith("_m")
            or name.startswith(("csi_", "c_nino34", "rmse_nino34", "crps", "bss_"))
            or "_" not in name
        ):
            if "_per_lead_mean" in name:
                continue
            print(f"  {name:<24} {'undefined: ' + record.undefined[name] if value is None else f'{value:.6g}'}")
    print(f"record: {outcome.record_path}")
    if outcome.picture_path:
        print(f"picture: {outcome.picture_path}")
