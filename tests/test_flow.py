"""The one direction, end to end in small: corpus -> store -> batch -> model -> objective -> fit -> checkpoint -> encoder -> embed -> probe."""

import dataclasses

import numpy as np
import pytest
import torch

from physio_data import Store
from physio_data.corpora import corpus
from physio_data.prepare import PrepareConfig, prepare
from physio_models.contract import ContractError, InputContract, SignalSpec, normalize
from physio_models.himae import HiMaeConfig
from physio_models.objectives.masked import MaskedReconstruction
from physio_models.pretrained import from_pretrained, save_pretrained
from physio_train import Batches, FitConfig, fit
from physio_train.embed import embed
from physio_train.folds import outer_folds
from physio_train.protocol import Task, Windows, cross_validate


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    out = tmp_path_factory.mktemp("flow") / "store"
    cfg = PrepareConfig(corpus="synthetic", corpus_options={"n_subjects": 24, "minutes": 1.0, "seed": 3}).settled(corpus("synthetic"))
    prepare(cfg, out)
    return Store(out, task="pvc")


@pytest.fixture(scope="module")
def encoder(store, tmp_path_factory):
    config = HiMaeConfig.preset("tiny", n_samples=store.n_samples)
    torch.manual_seed(0)
    model = config.build()

    def transform(batch, streams):
        return batch | {"signal": normalize(batch["signal"], "lead_zscore")[0]}

    rows = store.rows("train")
    batches = Batches(store, rows, batch_size=16, seed=0, transform=transform)
    losses = [
        float(step.loss.total) for step in fit(model, MaskedReconstruction(patch=5, mask_ratio=0.5), batches, FitConfig(n_steps=25, batch_size=16, lr=3e-3))
    ]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]), "training lowers the loss"
    contract = InputContract(
        channels=store.channels,
        units=store.units,
        fs=store.fs,
        window_s=store.window_s,
        band=tuple(store.manifest["band"]),
        normalization="lead_zscore",
        kind=store.kind,
        length_free=True,
    )
    folder = tmp_path_factory.mktemp("flow") / "saved"
    save_pretrained(folder, model.eval(), config, contract, {"stores": [store.hash], "subjects": sorted(set(store.index["subject"][rows]))})
    return from_pretrained(folder)


@pytest.fixture(scope="module")
def spec(store):
    return SignalSpec(channels=store.channels, units=store.units, fs=store.fs, n_samples=store.n_samples, band=tuple(store.manifest["band"]), kind=store.kind)


def test_a_saved_encoder_gives_the_features_of_the_trained_one_in_any_batch(store, encoder, spec):
    def features(rows):
        return embed(lambda batch: encoder.features(batch["signal"], spec, level="all", pool="mean"), store, rows, batch_size=7)

    rows = np.arange(20)
    np.testing.assert_allclose(features(rows)[::-1], features(rows[::-1]), rtol=1e-4, atol=1e-5)


def test_an_encoder_refuses_a_store_of_another_rate(store, encoder, spec):
    with pytest.raises(ContractError, match="--fs 25"):
        encoder(torch.zeros(1, 1, 500), dataclasses.replace(spec, fs=50.0, n_samples=500))


def test_subjects_of_a_test_fold_were_never_trained_on(store, encoder):
    assert not set(encoder.seen["subjects"]) & set(store.index["subject"][store.rows(("val", "test"))])


def test_a_probe_scores_every_window_once_by_subjects_it_was_not_fitted_on(store, encoder, spec):
    rows = np.arange(len(store))
    x_ND = embed(lambda batch: encoder.features(batch["signal"], spec, level="all", pool="mean"), store, rows)
    index = store.index
    windows = Windows(y=store.label("pvc"), subject=index["subject"], record=index["record"], start_s=index["start_s"])
    specs = outer_folds(windows.groups, windows.y, n_folds=4)
    for fold in specs:
        assert not set(windows.subject[fold.train]) & set(windows.subject[fold.test])
    scored = cross_validate("pretrained", x_ND, windows, Task(name="pvc"), specs)
    assert len(scored.predictions.start_s) == len(store)
