from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from physio_train import checkpoint
from physio_train.batches import Batches
from physio_train.config import CHANGEABLE, FitConfig
from physio_train.loop import Loss, fit, validate
from physio_train.state import NonFiniteLossError
from physio_train.streams import Streams


class Plain:
    """The mean square of a linear map's output, with nothing of its own."""

    def modules(self, model):
        return nn.ModuleDict()

    def __call__(self, model, batch, step):
        square_B = model(batch["signal"]).square().mean(dim=(1, 2))
        return Loss(square_B.mean(), {"largest": square_B.max().detach()})


def batches_of(job, cfg, n=50, **more):
    return Batches(job.Rows(n), np.arange(n), batch_size=cfg.batch_size, seed=cfg.seed, **more)


def run(job, model=None, objective=None, *, seed=0, resume=None, **changes):
    """All progress of a run on the CPU, and the model."""
    cfg = job.config(**({"ema_decay": None} | changes))
    torch.manual_seed(seed)
    model = model or job.Net(norm=False, dropout=0.0)
    return list(fit(model, objective or Plain(), batches_of(job, cfg), cfg, resume=resume, device="cpu")), model


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_fit_is_adamw_under_a_lambda_schedule_with_clipping(job):
    """The same steps written out with torch's own scheduler."""
    progress, model = run(job, n_steps=10, warmup=0.2, schedule="linear", clip_norm=0.05, decay_all=True, weight_decay=0.1)
    torch.manual_seed(0)
    other = job.Net(norm=False, dropout=0.0)
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-2, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: s / 2 if s < 2 else (10 - s) / 8)
    source = batches_of(job, job.config())
    for p in progress:
        loss = other(next(source)["signal"]).square().mean(dim=(1, 2)).mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(other.parameters(), 0.05)
        assert p.loss.total.item() == pytest.approx(loss.item(), rel=1e-6) and p.grad_norm.item() == pytest.approx(norm.item(), rel=1e-5)
        assert p.lr == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("accumulate", [2, 3, 20])
def test_accumulation_equals_the_whole_batch(job, accumulate):
    whole, model = run(job, batch_size=10)
    parts, other = run(job, batch_size=10, accumulate=accumulate)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert [p.loss.total.item() for p in parts] == pytest.approx([p.loss.total.item() for p in whole], rel=1e-5)


def test_the_objective_trains_its_own_modules_and_hears_of_each_step(job):
    progress, _ = run(job, objective=job.Objective(), n_steps=5)
    modules = progress[-1].state.modules
    fresh = job.Objective().modules(nn.Identity())
    assert modules["scale"].n_steps == 5
    assert not torch.equal(modules["scale"].weight, fresh["scale"].weight)


def test_progress_counts_steps_epochs_and_what_is_due(job):
    progress, _ = run(job, n_steps=8, checkpoint_every=3, validate_every=None)
    assert [p.step for p in progress] == list(range(1, 9)) and [p.epoch for p in progress] == [0] * 6 + [1] * 2
    assert [p.step for p in progress if p.checkpoint_due] == [3, 6, 8] and [p.step for p in progress if p.validate_due] == [8]
    assert progress[0].numbers().keys() == {"loss", "largest", "lr", "grad_norm", "epoch"}


def test_epochs_are_turned_into_steps(job):
    progress, _ = run(job, n_steps=None, n_epochs=1.5)
    assert len(progress) == 9


@pytest.mark.parametrize("check_every", [1, 4, 100])
def test_a_nan_stops_the_run_naming_step_and_items_and_saves_nothing(job, tmp_path, check_every):
    cfg = job.config(ema_decay=None, check_every=check_every, n_steps=6)
    rows, bad = job.Rows(50), 17
    rows.signal_NCT[bad] = np.nan
    source = Batches(rows, np.arange(50), batch_size=8, seed=3)
    step, items = next((i, b["index"].tolist()) for i, b in enumerate(batches_of(job, cfg), 1) if bad in b["index"])
    with pytest.raises(NonFiniteLossError, match=f"loss is not finite at step {step} .*item indices: {', '.join(map(str, items))};"):
        for progress in fit(job.Net(), Plain(), source, cfg, device="cpu"):
            if progress.step == 6:
                progress.state.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_infinite_gradient_of_a_finite_loss_stops_the_run(job):
    class Root(Plain):
        def __call__(self, model, batch, step):
            return Loss(super().__call__(model, batch, step).total.mul(0.0).sqrt(), {})

    with pytest.raises(NonFiniteLossError, match="gradient is not finite at step 1"):
        run(job, objective=Root(), check_every=1)


def test_no_step_reads_a_number_back(job, monkeypatch):
    """Reading a tensor's value is what makes a program wait for the device; only the optimiser reads its own count, on the CPU."""
    cfg = job.config(ema_decay=0.9, check_every=100)
    steps = fit(job.Net(), Plain(), batches_of(job, cfg), cfg, device="cpu")
    next(steps)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_, **__: None)

    def refuse(*_):
        raise AssertionError("a number was read")

    for name in ("item", "tolist", "__bool__", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    assert next(steps).step == 2


def test_bf16_trains_and_fp16_is_refused_on_the_cpu(job):
    low, _ = run(job, precision="bf16")
    full, _ = run(job)
    assert [p.loss.total.item() for p in low] == pytest.approx([p.loss.total.item() for p in full], rel=0.05)
    with pytest.raises(ValueError, match="bf16"):
        run(job, precision="fp16")


def test_a_compiled_model_takes_the_same_steps(job, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    plain, model = run(job, n_steps=3)
    compiled, other = run(job, n_steps=3, compile=True)
    assert [p.loss.total.item() for p in compiled] == pytest.approx([p.loss.total.item() for p in plain], rel=1e-6)
    assert equal(dict(model.state_dict()), dict(other.state_dict()))


def test_frozen_parts_keep_their_statistics_and_weights(job):
    model = job.Net()
    model.norm.requires_grad_(False)
    run(job, model=model)
    assert model.norm.num_batches_tracked == 0 and not model.norm.training and model.first.training
    with pytest.raises(ValueError, match="nothing to train"):
        run(job, model=job.Net().requires_grad_(False))


def test_the_saved_model_is_the_one_that_validation_used(job, tmp_path):
    progress, model = run(job, model=job.Net(), ema_decay=0.9)
    state = progress[-1].state
    saved = checkpoint.load(state.save(tmp_path, extra={"note": "x"}))
    assert equal(saved.model, dict(state.eval_model.state_dict()))
    assert not torch.equal(saved.model["first.weight"], model.first.weight)
    assert torch.equal(saved.state["live/first.weight"], model.first.weight) and saved.meta["extra"] == {"note": "x"}


def test_validation_repeats_exactly_and_leaves_the_model_as_it_was(job):
    torch.manual_seed(0)
    model, objective = job.Net(), job.Objective()
    model.first.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    source, modules = batches_of(job, job.config(), shuffle=False), objective.modules(model)
    first, second = (validate(model, objective, source.one_epoch(), modules=modules, seed=1) for _ in range(2))
    assert first == second and first.keys() == {"loss", "mse", "hidden"}
    assert equal(dict(model.state_dict()), before) and model.training and model.norm.training and not model.first.training


def test_validation_weights_windows_equally(job):
    model, source = job.Net(norm=False, dropout=0.0), batches_of(job, job.config(), shuffle=False)
    expected = model(torch.from_numpy(job.Rows(50).signal_NCT)).square().mean().item()
    assert validate(model, Plain(), source.one_epoch())["loss"] == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="no batch"):
        validate(model, Plain(), [])


def test_an_objective_sees_progress_from_zero_towards_one_and_streams_of_the_epoch(job):
    seen = []

    class Looking(Plain):
        def __call__(self, model, batch, step):
            seen.append((step.progress, step.streams))
            return super().__call__(model, batch, step)

    run(job, objective=Looking(), n_steps=8)
    assert [progress for progress, _ in seen] == [i / 8 for i in range(8)]
    assert seen[7][1] == Streams(3, 1, torch.device("cpu"))


def test_resuming_goes_on_exactly_and_may_change_the_length(job, tmp_path):
    whole = job.train(str(tmp_path / "whole"), n_steps=12, schedule="constant")
    job.train(str(tmp_path / "half"), n_steps=6, schedule="constant")
    torch.manual_seed(99)
    rest = job.train(str(tmp_path / "half"), n_steps=12, schedule="constant", resume=str(tmp_path / "half" / "step_6"))
    assert rest == whole[6:]
    for name in ("model.safetensors", "state.safetensors"):
        assert (tmp_path / "whole/step_12" / name).read_bytes() == (tmp_path / "half/step_12" / name).read_bytes()


def test_resuming_with_another_config_objective_or_model_is_refused(job, tmp_path):
    job.train(str(tmp_path), n_steps=2)
    step = str(tmp_path / "step_2")
    with pytest.raises(ValueError, match=r"lr \(0\.01 saved, 0\.5 given\)"):
        job.train(str(tmp_path), resume=step, lr=0.5)
    with pytest.raises(ValueError, match="model does not fit: norm"):
        job.train(str(tmp_path), resume=step, norm=False)
    with pytest.raises(ValueError, match="modules does not fit: scale"):
        run(job, model=job.Net(), ema_decay=0.9, resume=step)


def test_batches_of_another_size_are_refused(job):
    with pytest.raises(ValueError, match="must agree"):
        fit(job.Net(), Plain(), batches_of(job, job.config()), job.config(batch_size=9), device="cpu")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"n_epochs": 2}, "one of them"),
        ({"n_steps": None}, "one of them"),
        ({"n_steps": 0}, "n_steps"),
        ({"lr": 0.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"warmup": 1.5}, "warmup"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"schedule": "step"}, "schedule"),
        ({"precision": "fp8"}, "precision"),
    ],
)
def test_a_bad_config_names_the_field(change, match):
    with pytest.raises(ValueError, match=match):
        FitConfig(**({"n_steps": 5} | change))


def test_every_changeable_key_is_a_field():
    assert set(CHANGEABLE) <= {field.name for field in dataclasses.fields(FitConfig)}
