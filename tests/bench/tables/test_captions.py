"""What the lines below a block tell of its runs."""

from __future__ import annotations

from official import PAPER_SETTINGS, as_official, trained_with, unet_like

from bench.records.schema import RunRecord
from bench.tables import load_table
from bench.tables.captions import captions
from bench.tables.render import render


def test_captions_state_budget_seeds_data_and_device(measured: RunRecord) -> None:
    settings = {**PAPER_SETTINGS, "max_steps": None, "optimizer": "adamw"}
    config = {"data": {"batch_size": 8}}
    runs = [
        unet_like(measured, seed=seed, config=config, training=trained_with(settings, steps=steps))
        for seed, steps in ((0, 90), (1, 120))
    ]
    other = measured.model.model_copy(update={"name": "convlstm", "parameters": 7})
    summary = trained_with({**settings, "max_steps": 50}, steps=50, weights="best", monitor="val/loss")
    runs.append(as_official(measured, model=other, training=summary))
    lines = captions([("UNet", runs[:2]), ("ConvLSTM", runs[2:]), ("Persistence", [measured])])
    assert lines[0] == "trained rows: 35718 training sequences, 9060 to validate (files, data ffffffffff)"
    assert lines[1].startswith("UNet: seed 0, seed 1; at most 100 epochs of batch 8, adamw, lr 0.001; ")
    assert "90 steps run" in lines[1] and "120 steps run" in lines[1]
    assert lines[2].startswith("ConvLSTM: seed 0; at most 50 steps, adamw") and "best val/loss" in lines[2]
    assert lines[3].startswith("ran on ") and "threads" in lines[3] and len(lines) == 4
    assert captions([]) == []


def test_seeds_of_different_plugin_code_are_noted(measured: RunRecord) -> None:
    source = measured.code.sources["model"]

    def run(seed: int, digest: str, origin: str = "mine.model:Mine (mine 0.1.0)") -> RunRecord:
        code = measured.code.model_copy(update={"sources": {"model": source.model_copy(update={"sha256": digest})}})
        model = measured.model.model_copy(update={"name": "mine", "origin": origin, "parameters": 7})
        return unet_like(measured, seed=seed, run_id=f"2026-{seed}", model=model, code=code)

    told = "mine: the model's code changed between these runs; run them again (seed 0, 2: source aaaaaaaaaa; seed 1"
    table = load_table("runs/sevir")
    runs = [run(0, "a" * 64), run(1, "b" * 64), run(2, "a" * 64)]
    assert told in render(table, runs) and told not in render(table, runs[::2])
    builtin = [run(seed, digest * 64, "baselines.mine:Mine (earthbench 0.1.0)") for seed, digest in enumerate("ab")]
    assert "code changed" not in render(table, builtin)


def test_captions_state_the_budget_of_each_stage(measured: RunRecord) -> None:
    stages = {"vqvae": {"lr": 2e-3, "batch_size": 4, "max_steps": 30}, "gpt": {"lr": 3e-3}}
    settings = {**PAPER_SETTINGS, "max_steps": 50, "optimizer": "adam", "stages": stages}
    run = unet_like(measured, config={"data": {"batch_size": 8}}, training=trained_with(settings, steps=80))
    (trained, _) = captions([("VideoGPT", [run])])
    assert (
        "vqvae: at most 30 steps of batch 4, adam, lr 0.002; gpt: at most 50 steps of batch 8, adam, lr 0.003"
        in trained
    )
