"""From a store to a folder of features: the numbers, the views, the provenance, and what is refused."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import compose
import embed
import prepare
from features import write_features
from physio_data.augment import PRESETS, augment
from physio_data.filters import bandpass
from physio_data.store import Store
from physio_models.contract import ContractError, Encoder
from physio_models.himae import HiMaeConfig
from physio_models.papagei import PapageiConfig
from physio_models.pretrained import build_untrained
from physio_models.reference_papagei import papagei_contract
from physio_train.features import open_features

APPS = Path(compose.__file__).parent
PPG = ["synthetic", "--fs", "125", "--band", "0.5,12", "--option", "n_subjects", "6", "minutes", "0.5", "--out"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("embed")


@pytest.fixture(scope="module")
def raw(folder):
    prepare.main([*PPG, str(folder / "raw"), "--raw"])
    return Store(folder / "raw")


@pytest.fixture(scope="module")
def filtered(folder):
    prepare.main([*PPG, str(folder / "filtered")])
    return Store(folder / "filtered")


@pytest.fixture(scope="module")
def papagei():
    config = PapageiConfig.preset("tiny")
    return Encoder(build_untrained("papagei", config), papagei_contract(), name="papagei", config=config)


def himae(store, **changes):
    config = HiMaeConfig.preset("tiny", n_samples=store.n_samples)
    spec = compose.spec_of(store)
    contract = replace(papagei_contract(), units=spec.units, band=spec.band, normalization="instance_minmax", **changes)
    return Encoder(build_untrained("himae", config), contract, name="himae", config=config)


def z_scored(x_BCT):
    """The normalisation of PaPaGei's contract, in float64 by itself."""
    x_BCT = x_BCT.astype(np.float64)
    return ((x_BCT - x_BCT.mean(-1, keepdims=True)) / (x_BCT.std(-1, keepdims=True) + 1e-6)).astype(np.float32)


@torch.no_grad()
def embedding(encoder, x_BCT):
    return encoder.model(torch.from_numpy(z_scored(x_BCT))).embedding_BD.numpy()


def test_vectors_are_those_of_the_network_itself_and_the_index_is_the_stores(papagei, filtered, tmp_path):
    found = open_features(write_features(papagei, filtered, tmp_path / "f", batch_size=8))
    signal_NCT = filtered.batch(filtered.rows())["signal"]
    np.testing.assert_allclose(found.z, embedding(papagei, signal_NCT), rtol=1e-4, atol=1e-5)
    assert found.index.keys() == set(filtered.index)
    assert all(np.array_equal(found.index[name], filtered.index[name]) for name in ("subject", "record", "start_s", "next", "fold", "label/pvc"))
    assert found.meta["stores"] == [filtered.hash] and found.meta["level"] == "embedding" and found.meta["model"]["name"] == "papagei"
    assert found.meta["signal"]["tasks"] == filtered.tasks and found.meta["views"] is None


def test_all_levels_are_pooled_and_joined_and_tokens_are_kept_whole(filtered, tmp_path):
    encoder = himae(filtered)
    batch = filtered.batch(filtered.rows())
    levels = encoder(batch["signal"], compose.spec_of(filtered)).levels
    found = open_features(write_features(encoder, filtered, tmp_path / "all", level="all", pool="mean+max", batch_size=64))
    expected = torch.cat([torch.cat([x.mean(1), x.amax(1)], 1) for x in levels.values()], 1)
    np.testing.assert_allclose(found.z, expected.numpy(), rtol=1e-5, atol=1e-6)
    kept = open_features(write_features(encoder, filtered, tmp_path / "tokens", level="L2", pool="tokens", dtype="float16", batch_size=64))
    assert kept.tokens.dtype == np.float16 and kept.z is None
    np.testing.assert_allclose(kept.tokens, levels["L2"].numpy(), rtol=2e-3, atol=1e-3)


def test_views_are_augmented_then_filtered_then_encoded(papagei, raw, tmp_path):
    found = open_features(write_features(papagei, raw, tmp_path / "f", views=2, view_seed=3, windows=True, batch_size=7))
    raw_NCT = raw.batch(raw.rows())["signal"]
    np.testing.assert_allclose(found.windows, bandpass(raw_NCT, 125.0, 0.5, 12.0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.z, embedding(papagei, bandpass(raw_NCT, 125.0, 0.5, 12.0)), rtol=1e-3, atol=1e-4)
    for view in range(2):
        view_NCT = augment(raw_NCT, 125.0, PRESETS["st_sae"], seed=3, epoch=0, index_B=raw.rows(), view=view)
        np.testing.assert_allclose(found.z_aug[view], embedding(papagei, bandpass(view_NCT, 125.0, 0.5, 12.0)), rtol=1e-3, atol=1e-4)
    assert np.abs(found.z_aug[0] - found.z_aug[1]).max() > 1e-3
    views = found.meta["views"]
    assert views["n"] == 2 and views["seed"] == 3 and views["steps"][0]["name"] == "BandNoise" and "snr_db" in views["steps"][0]
    assert found.meta["filtered_here"] == {"band": [0.5, 12.0], "filter": "butterworth", "notch_hz": None}


def test_views_of_a_filtered_store_are_refused(papagei, filtered, tmp_path):
    with pytest.raises(ValueError, match="prepare it anew with --raw"):
        write_features(papagei, filtered, tmp_path / "f", views=1)


def test_the_bare_layout_is_what_the_original_pipeline_loads(papagei, raw, tmp_path):
    path = write_features(papagei, raw, tmp_path / "f", views=1, windows=True, bare=True)
    z, z_aug, windows = (np.load(path / f"{name}.npy", mmap_mode="r") for name in ("z", "z_aug", "windows"))
    assert z.shape == z_aug.shape == (len(raw), 16) and windows.shape == (len(raw), 1250) and z.dtype == np.float32
    assert open_features(path).z_aug.shape == (1, len(raw), 16)
    with pytest.raises(ValueError, match="one view and one channel, got 2 views"):
        write_features(papagei, raw, tmp_path / "g", views=2, bare=True)


def test_of_some_rows_next_counts_among_them(papagei, filtered, tmp_path):
    rows = np.flatnonzero(filtered.index["fold"] == "train")[::2]
    rows = np.union1d(rows, np.flatnonzero(filtered.index["next"] >= 0)[:2])
    found = open_features(write_features(papagei, filtered, tmp_path / "f", rows=rows))
    place = {int(row): i for i, row in enumerate(rows)}
    assert found.index["store_row"].tolist() == rows.tolist()
    assert found.index["next"].tolist() == [place.get(int(filtered.index["next"][row]), -1) for row in rows]


def test_a_short_tail_stays_out_of_the_features(folder, tmp_path):
    prepare.main([*PPG[:5], "--window-s", "16", "--pad-tail", *PPG[5:], str(folder / "tails")])
    store = Store(folder / "tails")
    short = int(np.flatnonzero(store.index["n_valid"] < store.n_samples)[0])
    encoder, n = himae(store, window_s=16.0), int(store.index["n_valid"][short])
    tail_1CT = store.batch([short])["signal"][..., :n]
    low, high = tail_1CT.min(), tail_1CT.max()
    found = open_features(write_features(encoder, store, tmp_path / "f", level="L1", pool="max"))
    scaled_1CT = np.pad((tail_1CT - (low + high) / 2) / ((high - low) / 2), ((0, 0), (0, 0), (0, store.n_samples - n)))
    level_1ND = encoder.model.encode(torch.from_numpy(scaled_1CT)).levels["L1"]
    n_tokens = int(encoder.model.token_valid(torch.arange(store.n_samples)[None] < n)["L1"].sum())
    np.testing.assert_allclose(found.z[short], level_1ND[0, :n_tokens].amax(0).detach().numpy(), rtol=1e-3, atol=1e-4)


def test_what_does_not_fit_is_refused_before_anything_is_written(papagei, raw, tmp_path):
    with pytest.raises(ContractError, match=r"band is 0.5-12 Hz, the model needs 1-8 Hz"):
        write_features(Encoder(papagei.model, replace(papagei.contract, band=(1.0, 8.0))), raw, tmp_path / "f")
    for changes, message in (
        ({"level": "L9"}, "level must be all or one of block1"),
        ({"pool": "median"}, "pool must be one of"),
        ({"level": "all", "pool": "tokens"}, "name it, as level='embedding'"),
        ({"views": 1, "augmentation": "none"}, "augmentation must be one of papagei"),
    ):
        with pytest.raises(ValueError, match=message):
            write_features(papagei, raw, tmp_path / "f", **changes)
    assert list(tmp_path.iterdir()) == []


def test_the_app_reads_an_originals_file(papagei, raw, tmp_path):
    torch.save({f"module.{key}": value for key, value in papagei.model.state_dict().items()}, tmp_path / "papagei_s.pt")
    flags = ["--ckpt", str(tmp_path / "papagei_s.pt"), "--reference", "papagei", "--data", str(raw.path), "--out", str(tmp_path / "f"), "--precision", "fp32"]
    assert embed.main([*flags, "--dry-run"])["bytes"] == len(raw) * 16 * 4
    assert not (tmp_path / "f").exists()
    summary = embed.main(flags)
    assert summary["shape"] == [len(raw), 16] and summary["level"] == "embedding"
    np.testing.assert_array_equal(open_features(tmp_path / "f").z, open_features(write_features(papagei, raw, tmp_path / "g")).z)


def test_an_untrained_encoder_is_named_so(filtered, tmp_path):
    embed.main(["--model", "himae", "--size", "tiny", "--init-seed", "4", "--data", str(filtered.path), "--out", str(tmp_path / "f"), "--use", "train"])
    found = open_features(tmp_path / "f")
    assert found.meta["model"]["untrained"] is True and found.meta["model"]["name"] == "himae"
    assert set(found.index["fold"]) == {"train"}
    with pytest.raises(ValueError, match="name one encoder"):
        embed.main(["--data", str(filtered.path), "--out", str(tmp_path / "g")])


def command(*flags):
    return [sys.executable, str(APPS / "embed.py"), "--model", "papagei", "--precision", "fp32", "--batch-size", "4", *map(str, flags)]


@pytest.mark.slow
def test_killed_at_a_random_moment_or_shared_by_two_ranks_the_bytes_are_the_same(folder, tmp_path):
    prepare.main(["synthetic", "--fs", "125", "--band", "0.5,12", "--option", "n_subjects", "24", "minutes", "1", "--out", str(folder / "many")])
    subprocess.run(command("--data", folder / "many", "--out", tmp_path / "whole"), check=True, capture_output=True, timeout=300)
    process = subprocess.Popen(command("--data", folder / "many", "--out", tmp_path / "cut"), stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob(".cut.partial/done.*")) and process.poll() is None:
        time.sleep(0.02)
    time.sleep(float(np.random.default_rng().uniform(0, 2)))
    process.kill()
    assert process.wait() == -signal.SIGKILL and not (tmp_path / "cut").exists()
    subprocess.run(command("--data", folder / "many", "--out", tmp_path / "cut"), check=True, capture_output=True, timeout=300)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29581"]
    subprocess.run([*launch, *command("--data", folder / "many", "--out", tmp_path / "two")[1:]], check=True, capture_output=True, timeout=300)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    for name in ("cut", "two"):
        assert {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} == whole, name
    assert json.loads(whole["meta.json"])["n_windows"] == len(Store(folder / "many"))
