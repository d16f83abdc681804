"""The data apps: the report of a store, download's words, several stores in one run."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

import compose
import download
import prepare
import store_page
from physio_data.arrays import write_store
from physio_data.evidence import gather
from physio_data.order import BlockShuffle, Mixture
from physio_data.prepare import PrepareConfig
from physio_data.store import Store, Stores
from physio_train import Batches


class Seen(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_the_report_is_one_page_with_counts_examples_and_spectra(tmp_path):
    out = tmp_path / "s"
    options = ["--option", "n_subjects", "40", "minutes", "1.0", "--quality", "--report"]
    summary = prepare.main(["synthetic", "--out", str(out), *options])
    seen = Seen()
    seen.feed((out / "report.html").read_text(encoding="utf-8"))
    assert not seen.links and "script" not in seen.tags and seen.tags.count("svg") >= 4
    for part in (f"{summary['n_windows']:,} windows", "Windows by fold", "Rejected by reason", "Spectra before and after", "Kept", Store(out).hash):
        assert part in seen.text
    for reason, count in summary["rejected"].items():
        assert re.search(rf"{reason}\s*{count:,}", seen.text)
    assert Store(out, verify=True).hash, "the page is no part of the store"


def test_evidence_shows_the_windows_as_stored_and_their_spectra(tmp_path):
    from scipy.signal import welch

    options = {"n_subjects": 6, "minutes": 1.0}
    prepare.main(["synthetic", "--out", str(tmp_path / "s"), "--option", "n_subjects", "6", "minutes", "1.0"])
    store, found = Store(tmp_path / "s"), gather(PrepareConfig(corpus="synthetic", corpus_options=options), n_records=3, n_kept=6)
    for example in found.examples:
        row = np.flatnonzero((store.index["record"] == example.record) & np.isclose(store.index["start_s"], example.start_s))
        if example.reasons:
            assert not len(row)
        else:
            np.testing.assert_allclose(store.batch(row)["signal"][0], example.stored_CT, atol=1e-5)
    kept = [example.stored_CT[0] for example in found.examples if not example.reasons]
    f_F, power_F = welch(np.array(kept), store.fs, window=np.hanning(store.n_samples), nperseg=store.n_samples, detrend="constant", axis=-1)
    expected_F = np.median([np.interp(found.after.frequency_F, f_F, one_F) for one_F in power_F], axis=0)
    inside = (found.after.frequency_F > 0.5) & (found.after.frequency_F < 8)
    np.testing.assert_allclose(found.after.power_CF[0][inside], expected_F[inside], rtol=1e-4)


def test_text_of_a_corpus_is_escaped():
    assert store_page._escaped("<b>&") == "&lt;b&gt;&amp;"


def test_download_says_what_it_cannot_do(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'ptbxl'"):
        download.main(["ptbx1", "--out", str(tmp_path)])
    with pytest.raises(ValueError, match=r"no direct address of PulseDB_MIMIC.zip is published"):
        download.main(["pulsedb", "--out", str(tmp_path)])
    with pytest.raises(ValueError, match=r"url must be FILE=https://..., got 'a.zip'"):
        download.main(["pulsedb", "--out", str(tmp_path), "--url", "a.zip"])


def test_workers_and_a_scheduler_are_not_given_together(tmp_path):
    with pytest.raises(ValueError, match="--workers 2 for processes of this machine or --scheduler tcp://a:1 for a cluster, not both"):
        prepare.main(["synthetic", "--out", str(tmp_path / "s"), "--workers", "2", "--scheduler", "tcp://a:1"])


@pytest.fixture
def two(tmp_path):
    rng = np.random.default_rng(0)
    for name, n in (("a", 40), ("b", 120)):
        x_NCT = rng.standard_normal((n, 1, 20)).astype(np.float32)
        write_store(tmp_path / name, x_NCT, fs=10.0, channels=["PPG"], units=["a.u."], subject=[f"{name}{i}" for i in range(n)])
    return Stores([tmp_path / "a", tmp_path / "b"])


def drawn(batches, n):
    return [next(batches)["index"].tolist() for _ in range(n)]


@pytest.mark.parametrize("kind", ["mixture", "blocks"])
def test_an_order_is_the_same_for_any_number_of_ranks_and_resumes(two, kind):
    order = Mixture(sizes=two.sizes, weights=(2.0, 1.0)) if kind == "mixture" else BlockShuffle(block=8, pool=4)
    share = {"rows": two.rows(), "batch_size": 16, "seed": 3, "order": order}
    whole = drawn(Batches(two, **share), 25)  # two and a half epochs
    ranks = [drawn(Batches(two, rank=r, world_size=2, **share), 25) for r in range(2)]
    assert [sorted(a + b) for a, b in zip(*ranks, strict=True)] == [sorted(batch) for batch in whole]
    first = Batches(two, **share)
    drawn(first, 13)
    state = json.loads(json.dumps(first.state_dict()))
    again = Batches(two, **share)
    again.load_state_dict(state)
    assert drawn(again, 12) == whole[13:]
    with pytest.raises(ValueError, match="order differ"):
        Batches(two, **{**share, "order": None}).load_state_dict(state)
    if kind == "mixture":
        from_a = sum(index < 1 << 48 for batch in whole[:10] for index in batch)
        assert from_a == round(160 * 2 / 3)
    else:
        assert sorted(index for batch in whole[:10] for index in batch) == sorted(two.packed(np.arange(160)).tolist())


def test_a_mix_and_blocks_come_from_the_config(two):
    from dataclasses import replace

    cfg = compose.recipe("himae_ppg", "tiny")
    assert compose.order_of(cfg, two) is None
    assert compose.order_of(replace(cfg, mix=(2.0, 1.0)), two) == Mixture(sizes=(40, 120), weights=(2.0, 1.0))
    assert isinstance(compose.order_of(replace(cfg, shuffle="blocks"), two), BlockShuffle)
    with pytest.raises(ValueError, match="3 shares for 2 stores"):
        compose.order_of(replace(cfg, mix=(1.0, 1.0, 1.0)), two)
    with pytest.raises(ValueError, match="--mix mixes the stores"):
        compose.order_of(replace(cfg, mix=(1.0, 1.0), shuffle="blocks"), two)
    assert compose.from_json(compose.to_json(replace(cfg, mix=(2.0, 1.0)))).mix == (2.0, 1.0)
    with pytest.raises(ValueError, match="order says how an epoch is shuffled"):
        Batches(two, two.rows(), batch_size=4, seed=0, shuffle=False, order=BlockShuffle())
