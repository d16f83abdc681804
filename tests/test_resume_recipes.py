"""Every recipe, cut off at a random step or within the writing of a checkpoint, ends with the bytes of a run never interrupted.

The network, its objective with its noise, teachers and averages, the tokenizer, the optimiser and the random states all come
back: weights and state are compared byte by byte. Killed processes are tested beside `fit` itself; here the run is dropped as it stands.
"""

import os
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

import compose
import extras
import tokens
from physio_train import checkpoint, fit
from prepare import prepared

N_STEPS = 5
RECIPES = sorted(path.stem for path in compose.RECIPES.glob("*.py") if path.stem != "__init__")
MODES = {"as written": {}, "bf16 with averaged weights": {"precision": "bf16", "ema_decay": 0.9}, "fp32 in pieces": {"precision": "fp32", "accumulate": 2}}
QUICK = {
    ("himae_ppg", "bf16 with averaged weights"),
    ("jepa_vit", "as written"),
    ("ecg_byte_decoder", "as written"),
    ("dit_flow", "bf16 with averaged weights"),
}
CASES = [pytest.param(r, m, marks=() if (r, m) in QUICK else pytest.mark.slow) for r in RECIPES for m in MODES]


class Killed(BaseException):
    """Ends a run where it stands: nothing catches it."""


@pytest.fixture(scope="module")
def store_for(tmp_path_factory):
    """`store_for(cfg)`: a small built-in cohort of the recipe's leads, rate and window, prepared once for all that share it."""
    made = {}

    def store(cfg):
        cohort = cfg.cohort
        options = {**cohort.options} if cohort.corpus == "synthetic" else {"signal": "ecg"}
        window_s = cohort.window_s or 1.4
        small = compose.Cohort(
            leads=cohort.leads if cohort.corpus == "synthetic" else ("ECG",),
            window_s=window_s,
            hop_s=window_s,
            fs=cohort.fs or 100.0,
            band=cohort.band,
            options={**options, "n_subjects": 12, "minutes": 0.5},
        )
        key = repr(small)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("store") / "store"
            prepared(small.prepare_config(), made[key], quiet=True)
        return compose.open_stores([made[key]])

    return store


def parts(cfg, store, rows):
    tokenizer = None
    if tokens.reads_tokens(cfg.model):
        tokenizer = tokens.tokenizer_for(cfg.tokens, store, rows, seed=cfg.fit.seed)
        cfg = tokens.settled(cfg, tokenizer)
    return compose.parts(cfg, store, rows, rows[:0], tokenizer=tokenizer)


def train(cfg, store, folder, *, resume=None, stop_after=None, at_save=None):
    """Save every step; drop the run after one of them, or call `at_save(step)` before each."""
    rows = compose.rows_of(store, ())
    made = parts(cfg, store, rows)
    for step in fit(made.model, made.objective, made.batches, cfg.fit, resume=resume, device="cpu"):
        if at_save:
            at_save(step.step)
        step.state.save(folder)
        if step.step == stop_after:
            return


@pytest.mark.parametrize(("recipe", "mode"), CASES)
def test_a_recipe_cut_off_and_resumed_ends_with_the_same_bytes(recipe, mode, store_for, tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "report_vectors", lambda store, name: lambda rows: np.random.default_rng(0).standard_normal((1 << 16, 768))[rows].astype("f4"))
    cfg = compose.recipe(recipe, "tiny")
    store = store_for(cfg)
    cfg = compose.fit_model_to(replace(cfg, probe=replace(cfg.probe, task="pvc")), store)
    cfg = replace(cfg, fit=replace(cfg.fit, **{"n_steps": N_STEPS, "n_epochs": None, "batch_size": 8, "keep_last": 2, **MODES[mode]}))
    if getattr(cfg.model, "text_width", None) and recipe == "merl":
        cfg = replace(cfg, model=replace(cfg.model, text_width=768))
    draw = np.random.default_rng()
    first, second = sorted(draw.choice(np.arange(1, N_STEPS), 2, replace=False).tolist())
    train(cfg, store, tmp_path / "whole")
    train(cfg, store, tmp_path / "cut", stop_after=first)
    killed_at = int(draw.integers(6))
    with monkeypatch.context() as patched:
        with pytest.raises(Killed):
            train(cfg, store, tmp_path / "cut", resume=checkpoint.latest(tmp_path / "cut"), at_save=lambda step: step == second and arm(patched, killed_at))
    newest = checkpoint.latest(tmp_path / "cut")
    train(cfg, store, tmp_path / "cut", resume=newest)
    for name in ("model.safetensors", "state.safetensors"):
        one, other = (tmp_path / folder / f"step_{N_STEPS}" / name for folder in ("whole", "cut"))
        assert one.read_bytes() == other.read_bytes(), f"{name}, cut after {first}, then at write {killed_at} of {second}, resumed from {newest.name}"
    kept = checkpoint.steps(tmp_path / "cut")
    assert kept == [N_STEPS - 1, N_STEPS] and all(b - a == 1 for a, b in pairwise(kept))


def arm(patched, at):
    """From here on the `at`-th flush to the disk is the last thing that happens, as after SIGKILL: nobody tidies up."""
    calls, real = iter(range(1000)), os.fsync

    def fsync(descriptor):
        if next(calls) == at:
            raise Killed
        return real(descriptor)

    patched.setattr(os, "fsync", fsync)
    patched.setattr(shutil, "rmtree", lambda *_, **__: None)
