"""What a fold's encoder learns from beside the fold's own windows: never a window of a test subject, half of every epoch from the fold itself."""

from dataclasses import replace

import numpy as np
import pytest

import benchmark
import compose
import encoders
import pool
import rows
from physio_data.arrays import write_store
from physio_data.corpora.contract import TaskSpec
from physio_data.store import Store, Stores
from physio_models.himae import HiMaeConfig
from physio_models.objectives.masked import MaskedReconstruction
from physio_train import FitConfig
from questions import question_of

RNG = np.random.default_rng(0)


def written(path, subjects, channel="MLII", **more):
    x_NCT = RNG.standard_normal((len(subjects), 1, 64)).astype(np.float32)
    label = {"labels": {"pvc": RNG.integers(0, 2, len(subjects))}, "tasks": {"pvc": TaskSpec(kind="binary")}}
    write_store(path, x_NCT, fs=32.0, channels=[channel], units=["mV"], subject=subjects, **label, **more)
    return path


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A fold's own store of eight people, and two others; one of them holds people of the first one's database too."""
    folder = tmp_path_factory.mktemp("pool")
    own = written(folder / "own", [f"own:{i // 10}" for i in range(80)])
    mixed = written(folder / "mixed", [f"{'own' if i % 2 else 'far'}:{i % 8}" for i in range(40)], channel="II")
    return own, mixed, written(folder / "wide", [f"wide:{i}" for i in range(400)], channel="ECG")


def config(n_steps=2):
    return compose.PretrainConfig(
        cohort=compose.Cohort(),
        model=HiMaeConfig(n_channels=1, n_samples=64, widths=(4, 8)),
        objective=MaskedReconstruction(patch=8, mask_ratio=0.5),
        fit=FitConfig(n_steps=n_steps, batch_size=16),
        normalization="lead_zscore",
        shift=False,
    )


def test_no_window_of_a_test_subject_is_in_the_pool(stores):
    own, *others = stores
    store = Store(own)
    train = np.flatnonzero(store.index["subject"] < "own:5")
    drawn = pool.pooled(store, train, others)
    subject_N = drawn.stores.index["subject"]
    inside = [subject_N[row] for row in drawn.rows_N.tolist()]
    assert {name for name in inside if name.startswith("own:")} == {f"own:{i}" for i in range(5)}
    assert sum(name.startswith("own:") for name in inside) == 50 and sum(name.startswith("far:") for name in inside) == 20
    assert sum(name.startswith("wide:") for name in inside) == 400 and drawn.stores.channels == ("MLII",)


def test_half_of_an_epoch_is_the_folds_own_and_every_batch_has_both_parts(stores):
    own, *others = stores
    store = Store(own)
    drawn = pool.pooled(store, np.arange(50), others)
    cfg = replace(config(), mix=drawn.shares)
    batches = compose.parts(cfg, drawn.stores, drawn.rows_N, np.zeros(0, np.int64)).batches
    number_N = np.concatenate([next(batches)["index"].numpy() >> 48 for _ in range(29)])  # an epoch of 470 windows
    assert all(len(np.unique(part == 0)) == 2 for part in number_N.reshape(29, 16))
    counts = np.bincount(number_N, minlength=3) / len(number_N)
    far, wide = np.sqrt([20, 400]) / np.sqrt([20, 400]).sum() / 2
    assert counts == pytest.approx([0.5, far, wide], abs=0.01)
    again = compose.parts(cfg, drawn.stores, drawn.rows_N, np.zeros(0, np.int64)).batches
    assert np.array_equal(next(again)["index"].numpy() >> 48, number_N[:16])


def test_an_encoder_says_all_that_it_saw_and_takes_the_folds_own_input(stores, tmp_path):
    own, *others = stores
    store = Store(own)
    found = encoders.pretrained_here(config(), tmp_path / "a", 0, store, np.arange(50), others)
    wide = {f"wide:{i}" for i in range(400)} | {f"far:{i}" for i in (0, 2, 4, 6)}
    assert set(found.seen["subjects"]) == wide | {f"own:{i}" for i in range(5)}
    assert found.seen["stores"] == [Store(path).hash for path in stores] and found.contract.channels == ("MLII",)
    again = encoders.pretrained_here(config(), tmp_path / "a", 0, store, np.arange(50), others)
    assert all(np.array_equal(a, b) for a, b in zip(found.model.state_dict().values(), again.model.state_dict().values(), strict=True))
    with pytest.raises(ValueError, match="choose another --out"):
        encoders.pretrained_here(config(), tmp_path / "a", 0, store, np.arange(50))
    alone = encoders.pretrained_here(config(), tmp_path / "b", 0, store, np.arange(50))
    assert set(alone.seen["subjects"]) == {f"own:{i}" for i in range(5)}


def test_an_encoder_that_saw_a_test_subject_is_refused(stores, tmp_path):
    own, *others = stores
    store = Store(own)
    question = question_of(store, (str(own),), np.arange(80), compose.ReadOut(task="pvc"))
    spec = benchmark.FoldSpec(seed=0, repeat=0, fold=0, train=np.arange(60), test=np.arange(55, 80))
    job = rows.Job(
        row="himae", source="inductive", specs=(spec,), question=question, cfg=config(), folder=str(tmp_path / "fold"), others=tuple(map(str, others))
    )
    with pytest.raises(ValueError, match="saw test subject own:5"):
        rows.work(job)
    done = rows.work(replace(job, specs=(replace(spec, test=np.arange(60, 80)),)))
    assert len(done.predictions.subject) == 20


def test_only_corpora_with_the_leads_and_the_length_are_read(tmp_path):
    def names(corpus, window_s=10.0, **more):
        x_NCT = np.zeros((2, len(more["channels"]), 8), np.float32)
        path = tmp_path / f"{corpus}{len(list(tmp_path.iterdir()))}"
        store = write_store(path, x_NCT, fs=8 / window_s, subject=["a:0", "a:1"], **({"units": ["mV"] * len(more["channels"])} | more))
        return [other.name for other in pool.others_for(store, corpus)]

    assert "mitbih" not in names("mitbih", channels=["MLII"]) and "synthetic" in names("mitbih", channels=["MLII"])
    assert names("cpsc2021", channels=["I", "II"]) == ["ptbxl", "cinc2021", "cpsc2018", "ludb"]
    assert names("ppgbp", 2.0, channels=["PPG"]) == ["troika", "bidmc", "synthetic"]
    assert names("synthetic", channels=["PPG"]) == ["troika", "bidmc"]
    assert names("ucr", channels=["ECG"], units=["normalised"]) == [] == names("folder", channels=["Fpz-Cz"])


@pytest.mark.slow
def test_real_folds_and_other_corpora_share_nobody(shared, tmp_path):
    root = shared / "data"
    for source in benchmark.SOURCES:
        if source.name not in ("ptbxl", "cpsc2021", "cinc2017", "ppgbp", "ecg200"):
            continue
        store = benchmark.prepared(source, root, tmp_path, "tiny", 1)
        others = benchmark.others(source, store, tmp_path)
        assert bool(others) == (source.name != "ecg200"), benchmark.pretraining_note(source, store, tmp_path)
        question, specs = benchmark.posed(source, store, tmp_path / "stores" / source.name, source.tasks[0], "tiny", compose.ReadOut())
        for spec in specs if others else ():
            drawn = pool.pooled(store, question.rows_N[spec.train], others)
            assert isinstance(drawn.stores, Stores) and sum(drawn.counts().values()) == len(drawn.rows_N)
            subject = drawn.stores.index["subject"]
            tested = set(store.index["subject"][question.rows_N[spec.test]].tolist())
            assert not tested & {subject[row] for row in drawn.rows_N.tolist()}
