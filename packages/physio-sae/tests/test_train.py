"""Training: order of a step, many at once as one alone, resuming, L0 control, dead concepts, errors."""

import math
from collections import deque
from dataclasses import replace

import numpy as np
import pytest
import torch

from physio_sae import losses
from physio_sae.controller import L0Control
from physio_sae.losses import LossConfig
from physio_sae.members import ABLATIONS, Member, ablated, grid
from physio_sae.sae import SaeConfig, load
from physio_sae.train import FitConfig, Trainer, fit, remove_parallel, to_triplet, unit_atoms_
from physio_sae.triplets import Features, Triplets
from physio_train import NonFiniteLossError

KINDS = ("relu", "topk", "batch_topk", "jumprelu", "gated", "matryoshka", "archetypal")
SHORT = FitConfig(n_steps=12, batch_size=64, lr=3e-3)


@pytest.fixture(scope="module")
def planted(tmp_path_factory, write_features):
    return write_features(tmp_path_factory.mktemp("planted") / "f")


@pytest.fixture(scope="module")
def features(planted):
    return Features.open(planted.folder)


def member(kind="topk", name=None, *, n=48, seed=0, target=None, **loss):
    sae = SaeConfig(width=32, n_concepts=n, kind=kind, k=5, n_points=40)
    return Member(name=name or kind, sae=sae, loss=LossConfig(**loss), control=L0Control(target=target), seed=seed)


def last(*args, **kwargs):
    return deque(fit(*args, **kwargs), maxlen=1).pop()


def explained(sae, z_ND, mean_D):
    with torch.no_grad():
        error = (z_ND - sae(torch.from_numpy(z_ND)).numpy()).astype(float)
    return 1 - np.square(error).sum() / np.square(z_ND - mean_D).sum()


def test_the_step_projects_then_renormalises(features):
    """OpenAI's loop renormalises before the step, so what it saves is not of unit length."""
    rows = features.rows("train")
    for progress in fit(features, rows, [member("topk"), member("relu")], SHORT):
        for t in progress.trainers:
            assert float((t.sae.W_dec.detach().norm(dim=1) - 1).abs().max()) < 1e-6
    atoms, gradient = torch.nn.functional.normalize(torch.randn(6, 4), dim=1), torch.randn(6, 4)
    expected = gradient - (gradient * atoms).sum(1, keepdim=True) * atoms
    remove_parallel(gradient, atoms)
    torch.testing.assert_close(gradient, expected)
    assert (gradient * atoms).sum(1).abs().max() < 1e-6
    long = 3 * atoms
    unit_atoms_(long)
    torch.testing.assert_close(long, atoms)


def test_one_step_is_adam_on_the_projected_clipped_gradient(features):
    """The whole step restated with torch.optim.Adam and the dense losses."""
    rows, cfg, mine = features.rows("train"), FitConfig(n_steps=10, batch_size=64, lr=1e-2, warmup=0.0, decay=0.0, clip_norm=0.5), member("topk")
    triplets = Triplets(features, rows, batch_size=64)
    trainer = Trainer(mine, cfg, n_steps=10, steps_per_epoch=triplets.steps_per_epoch, batch_size=64, device=torch.device("cpu"))
    reference = mine.sae.build(0)
    optimizer = torch.optim.Adam(reference.parameters(), lr=1e-2)
    for step in range(3):
        batch = to_triplet(triplets.at(step), trainer.sae)
        terms = losses.loss(reference, batch, mine.loss, engine="dense", l_sp=0.0, dead_J=torch.arange(0), dtype=torch.float32, draw=torch.Generator())
        optimizer.zero_grad()
        terms.total.backward()
        D = reference.W_dec
        D.grad -= (D.grad * D.detach()).sum(1, keepdim=True) * D.detach()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        optimizer.step()
        D.data /= D.data.norm(dim=1, keepdim=True)
        trainer.step(batch, step)
    for name, value in trainer.sae.named_parameters():
        torch.testing.assert_close(value, dict(reference.named_parameters())[name], atol=2e-5, rtol=1e-4)


def test_trained_together_each_ends_as_it_would_alone(features):
    rows = features.rows("train")
    members = [member(kind) for kind in KINDS] + [member("topk", "wide", n=64, seed=1), member("relu", "plain", stab=0.0, smooth=0.0)]
    together = last(features, rows, members, SHORT)
    assert together.triplets.rows_read == len(features)  # the cache was read once, for nine
    for i in (0, 1, 5, 7, 8):
        alone = last(features, rows, [members[i]], SHORT).trainers[0].sae
        z = features.z(features.rows("test"))
        assert torch.equal(alone.encode(z), together.trainers[i].sae.encode(z)), members[i].name


def test_a_resumed_run_ends_with_the_same_bytes(features, tmp_path):
    rows, members = features.rows("train"), [member(kind, target=6.0) for kind in ("topk", "relu", "matryoshka", "gated")]
    cfg = replace(SHORT, n_steps=24, dead_after=128, resample_every=4)
    whole = last(features, rows, members, cfg)
    for progress in fit(features, rows, members, cfg):
        if progress.step == 13:
            folder = progress.save(tmp_path)
            break
    resumed = last(features, rows, members, cfg, resume=folder)
    for a, b in zip(whole.trainers, resumed.trainers, strict=True):
        for name, value in a.sae.state_dict().items():
            assert torch.equal(value, b.sae.state_dict()[name]), (a.name, name)
        assert torch.equal(a.l_sp, b.l_sp) and torch.equal(a.since_fired_K, b.since_fired_K)
    with pytest.raises(ValueError, match="lr"):
        next(fit(features, rows, members, replace(cfg, lr=1.0), resume=folder))


def test_the_controller_holds_the_target(features):
    cfg = FitConfig(n_steps=300, batch_size=128, lr=3e-3)
    progress = last(features, features.rows("train"), [member("relu", target=6.0, stab=0.0, smooth=0.0)], cfg)
    z = features.z(features.rows("train"))
    assert float((progress.trainers[0].sae.encode(z) > 0).sum(1).float().mean()) == pytest.approx(6, rel=0.2)


def test_the_controller_follows_its_formula():
    control, weight = L0Control(target=10, eta=0.02), torch.tensor(0.1)
    assert control.update(weight, torch.tensor(12.0)).item() == pytest.approx(0.1 * (1 + 0.02 * math.log(1.2)))
    assert control.update(weight, torch.tensor(500.0)).item() == pytest.approx(0.1 * 1.02)
    assert control.update(weight, torch.tensor(0.0)).item() == pytest.approx(0.1 * 0.98)
    assert control.update(torch.tensor(1e-4), torch.tensor(0.0)).item() == pytest.approx(1e-4)
    assert L0Control().update(weight, torch.tensor(500.0)) is weight


def test_planted_atoms_are_found(features, planted):
    rows, test = features.rows("train"), features.z(features.rows("test"))
    cfg = FitConfig(n_steps=300, batch_size=128, lr=2e-2)
    sae = (
        last(features, rows, [replace(member("topk", div=0.0, stab=0.0, smooth=0.0), sae=SaeConfig(width=32, n_concepts=48, kind="topk", k=7))], cfg)
        .trainers[0]
        .sae
    )
    random = torch.nn.functional.normalize(torch.randn(48, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    atoms = torch.from_numpy(planted.atoms_KD).float()
    found, chance = ((atoms @ dictionary.detach().T).amax(1).mean() for dictionary in (sae.dictionary_KD, random))
    assert explained(sae, test, features.z(rows).mean(0)) > 0.75 and found > 0.75 > 0.6 > chance


def test_dead_concepts_return(features):
    """AuxK for topk, resampling for relu; both within one epoch's dead window, not ten million windows."""
    rows = features.rows("train")
    for kind, depth, on, off in (("topk", 0.3, {"aux": 1.0}, {"aux": 0.0}), ("relu", 1.0, {"resample_every": 10}, {"resample_every": 0})):
        dead = []
        for fields in (on, off):
            mine = member(kind, target=4.0, stab=0.0, smooth=0.0, div=0.0, **{k: v for k, v in fields.items() if k == "aux"})
            cfg = FitConfig(n_steps=150, batch_size=64, lr=3e-3, **{k: v for k, v in fields.items() if k != "aux"})
            for progress in fit(features, rows, [mine], cfg):
                if progress.step == 1:
                    t = progress.trainers[0]
                    with torch.no_grad():
                        t.sae.b_enc[:12] -= depth  # twelve concepts are switched off
            z = features.z(rows)
            dead.append(int((~(t.sae.encode(z) > 0).any(0))[:12].sum()))
        assert dead[0] < dead[1], (kind, dead)


def test_saved_autoencoders_carry_their_normalisation(features, tmp_path):
    """dictionary_learning writes the norm factor into a dict that is thrown away."""
    rows = features.rows("train")
    progress = last(features, rows, [member("topk"), replace(member("relu"), sae=SaeConfig(width=32, n_concepts=48, norm="per_dim"))], SHORT)
    paths = progress.save_saes(tmp_path, extra={"ablation": "full"})
    z = features.z(rows)
    for path, t in zip(paths, progress.trainers, strict=True):
        again = load(path)
        assert torch.equal(again.encode(z), t.sae.encode(z))
        np.testing.assert_allclose(again.mean, z.mean(0), atol=1e-5)
        x = again.normalise(torch.from_numpy(z))
        assert x.square().sum(1).mean().item() == pytest.approx(1, rel=1e-4)


def test_ablations_and_the_grid():
    base = member("relu", target=6.0)
    assert ablated(base, "vanilla").loss == replace(base.loss, div=0.0, stab=0.0, smooth=0.0)
    assert ablated(base, "topk").sae.kind == "topk" and ablated(base, "topk").sae.k == 6
    assert not ablated(base, "no_renorm").sae.unit_norm
    assert all(ablated(base, name) for name in ABLATIONS)
    names = [m.name for m in grid(base, n_concepts=(32, 64), ablations=("full", "topk"), seeds=(0, 1))]
    assert len(set(names)) == 8 and names[0] == "32_full_0"
    assert ablated(base, "mine", {"mine": {"loss.stab": 0.5, "sae.k": 3}}).loss.stab == 0.5
    with pytest.raises(ValueError, match="no ablation 'x'"):
        ablated(base, "x")
    with pytest.raises(ValueError, match="which is no field"):
        ablated(base, "mine", {"mine": {"loss.stabb": 0.5}})


def test_the_dense_engine_trains_to_the_same_codes(features):
    rows, z = features.rows("train"), features.z(features.rows("test"))
    dense, sparse = (last(features, rows, [member("batch_topk")], replace(SHORT, engine=engine)).trainers[0].sae for engine in ("dense", "sparse"))
    torch.testing.assert_close(dense.encode(z), sparse.encode(z), atol=1e-4, rtol=1e-3)


def test_bad_runs_are_named(features):
    rows = features.rows("train")
    for wrong, message in (
        ([member(n=2000)], r"n_concepts \(2000\) exceeds the 600 training windows"),
        ([member(), member()], "named apart"),
        ([replace(member(), sae=SaeConfig(width=31, kind="topk"))], r"width must be that of the embeddings \(32\)"),
    ):
        with pytest.raises(ValueError, match=message):
            next(fit(features, rows, wrong, SHORT))
    with pytest.raises(ValueError, match="engine sparse"):
        next(fit(features, rows, [member("relu")], replace(SHORT, engine="sparse")))
    with pytest.raises(ValueError, match="batch_size"):
        FitConfig(batch_size=1)
    with pytest.raises(NonFiniteLossError, match="topk became NaN"):
        last(features, rows, [member("topk", div=1e38)], replace(SHORT, lr=1e30, clip_norm=None))
