"""Which runs are seeds of one another, and how the others are named."""

from __future__ import annotations

from official import PAPER_SETTINGS, trained_with, unet_like

from bench.records.schema import RunRecord
from bench.tables.variants import shared_choices, variant_labels


def test_a_label_shows_given_hyperparameters_only(measured: RunRecord) -> None:
    model = measured.model.model_copy(update={"hyperparameters": {"depth": 2, "width": 8}, "is_preset": False})
    by_command = measured.model_copy(update={"model": model, "config": {"model": {"name": "persistence", "width": 8}}})
    from_python = measured.model_copy(update={"model": model})
    assert variant_labels([by_command, measured]) == ["persistence (width=8)", "persistence"]
    assert variant_labels([from_python, measured]) == ["persistence (depth=2, width=8)", "persistence"]


def test_hyperparameters_shared_by_all_variants_are_stated_once(measured: RunRecord) -> None:
    given = [{"width": 8, "pattern": "axial"}, {"width": 8, "pattern": "full"}]
    runs = []
    for options in given:
        model = measured.model.model_copy(update={"hyperparameters": {"depth": 2, **options}, "is_preset": False})
        config = {"model": {"name": "persistence", **options}}
        runs.append(measured.model_copy(update={"model": model, "config": config}))
    assert variant_labels(runs) == ["persistence (pattern=axial)", "persistence (pattern=full)"]
    assert shared_choices(runs) == {"persistence": {"width": 8}}
    again = runs[0].model_copy(update={"seed": 1})
    assert variant_labels([runs[0], again]) == ["persistence"] * 2
    assert shared_choices([runs[0], again]) == {"persistence": given[0]}
    preset = measured.model_copy(update={"model": measured.model.model_copy(update={"is_preset": True})})
    assert variant_labels([runs[0], preset]) == ["persistence (pattern=axial, width=8)", "persistence"]


def test_runs_with_different_batch_sizes_are_not_seeds_of_one_row(measured: RunRecord) -> None:
    summary = trained_with(PAPER_SETTINGS)
    runs = [unet_like(measured, config={"data": {"batch_size": size}}, training=summary) for size in (2, 8, 8)]
    assert variant_labels(runs) == ["unet (batch_size=2)", "unet (batch_size=8)", "unet (batch_size=8)"]
    assert variant_labels(runs[1:]) == ["unet", "unet"]


def test_only_differing_settings_of_stages_are_named(measured: RunRecord) -> None:
    def stages(steps: int) -> dict:
        return {"stages": {"vqvae": {"lr": 0.002, "max_steps": steps}, "gpt": {"lr": 0.003, "max_steps": 800}}}

    runs = [unet_like(measured, training=trained_with(PAPER_SETTINGS | stages(steps))) for steps in (300, 800)]
    assert variant_labels(runs) == ["unet (stages.vqvae.max_steps=300)", "unet (stages.vqvae.max_steps=800)"]
