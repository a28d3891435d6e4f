"""`earthbench ablate NAME`: runs the missing variants of an ablation through Hydra's launchers and prints its table."""

from __future__ import annotations

import argparse
from typing import Any

from bench.ablation.records import finished_record, reference_configs
from bench.cli.flags import add_overrides
from bench.cli.printing import print
from bench.cli.run import launch, sweep_job
from bench.config import Config, to_plain, validate
from bench.errors import ConfigError, EarthbenchError, InterruptedRunError
from bench.logs import log, shown_on
from bench.protocols.entries import hydra_overrides
from bench.protocols.variants import ablation_names, load_ablation, runs_by_variant, variants
from bench.records.schema import RunRecord

EXAMPLES = (
    "earthbench ablate patterns --count-only",
    "earthbench ablate patterns task=sevir data.root=DIR seed=0,1",
    "earthbench ablate my_ablation.yaml task=sevir data.root=DIR hydra/launcher=joblib",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("name", help=f"{', '.join(ablation_names())}, or a file of your own, NAME.yaml")
    add_overrides(
        parser,
        "Hydra overrides for every run, e.g. task=sevir_lr data.root=DIR train.max_epochs=3 seed=0,1; "
        "they replace its own (model.enc_attn_patterns=axial,full); hydra/launcher=joblib runs variants in parallel",
    )
    parser.add_argument("--count-only", action="store_true", help="sizes and speed only: no data, no training")
    parser.add_argument("--format", choices=("md", "csv", "json"), default="md")


def run(options: argparse.Namespace) -> int:
    """Runs the variants that have no record yet, then prints the table; failed runs are reported at the end."""
    ablation = load_ablation(options.name)
    runs = variants(ablation, options.overrides)
    failure: EarthbenchError | None = None
    records, references = None, []
    if not options.count_only:
        if runs[0].config.data.root is None:
            raise ConfigError("data.root is not set: give data.root=DIR, or --count-only for what needs no data")
        for config in (run.config for run in runs):
            finished_record(config)  # unusable data is reported before the first run starts
        failure = launch([[*run.overrides, *hydra_overrides(options.overrides)] for run in runs], job)
        records = [finished_record(run.config) for run in runs]
        references = _references(runs[0].config) if any(records) else []
    from bench.ablation.table import costs, lines, render, results_of

    task = runs[0].config.task.name
    measured = costs([runs[seeds[0]] for seeds in runs_by_variant(runs)], log.info)
    table = lines(ablation, runs, measured, records, references)
    remarks = results_of(task, records, references).remarks if records is not None else ()
    print(render(ablation, task, table, measured, options.format, remarks), end="")
    if failure is not None:
        raise failure
    return 0


def _references(config: Config) -> list[RunRecord]:
    """Runs the missing trivial references on an ablation's data, and returns the records of all of them."""
    found = []
    for reference in reference_configs(config):
        try:
            if finished_record(reference) is None:
                _run(reference)
            record = finished_record(reference)
        except InterruptedRunError:
            raise
        except EarthbenchError as error:  # not every reference is defined for every task
            log.info(f"no reference {reference.model.name}: {error}")
        else:
            found += [record] if record is not None else []
    return found


def _run(config: Config) -> None:
    from bench.engine.run import run as run_pipeline

    log.info(f"record: {run_pipeline(config, training=True).record_path}")


@sweep_job
def job(composed: Any) -> None:
    """Makes a run of an ablation or a board unless it has a record; launchers import it by name, on any machine."""
    config = validate(to_plain(composed))
    record = finished_record(config)
    with shown_on("stderr"):  # launchers call this in processes of their own
        if record is not None:
            log.info(f"already recorded: {record.run_id}")
        else:
            _run(config)
