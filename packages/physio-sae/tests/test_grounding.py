"""Concepts against morphology, findings, average beats and occlusion: planted relations are found, planted confounders are flagged."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import false_discovery_control, rankdata, spearmanr
from sklearn.metrics import roc_auc_score

from physio_sae.averages import MatchConfig, aligned_beats, cluster_permutation, compare, matched_windows, phase_beats, steepest_rises
from physio_sae.causal import flattened, occlude, steer
from physio_sae.codes import as_codes
from physio_sae.enrichment import aurocs, enrich
from physio_sae.grounding import GroundConfig, Windows, associations, false_discovery, ground


def test_the_table_is_spearman_and_its_partial_form():
    generator = np.random.default_rng(0)
    rate, age = generator.normal(size=(2, 80))
    codes = np.stack([rate + generator.normal(size=80), np.maximum(age + generator.normal(size=80), 0)], axis=1)
    feature = np.stack([rate + age, generator.normal(size=80)], axis=1)
    feature[:3, 1] = np.nan
    table = associations(codes, feature, np.stack([rate, age], axis=1))
    for k in range(2):
        for f in range(2):
            known = np.isfinite(feature[:, f])
            rho, p = spearmanr(codes[known, k], feature[known, f])
            assert table.rho_KF[k, f] == pytest.approx(rho) and table.p_KF[k, f] == pytest.approx(p)
            ranks = np.stack([rankdata(v[known]) for v in (codes[:, k], feature[:, f], rate, age)])
            inverse = np.linalg.inv(np.corrcoef(ranks))
            assert table.partial_KF[k, f] == pytest.approx(-inverse[0, 1] / np.sqrt(inverse[0, 0] * inverse[1, 1]))
    assert table.n_F.tolist() == [80, 77] and table.q_KF.reshape(-1) == pytest.approx(false_discovery_control(table.p_KF.reshape(-1)))


def test_a_feature_that_is_a_covariate_has_no_partial_correlation():
    generator = np.random.default_rng(1)
    rate = generator.normal(size=60)
    table = associations(rate[:, None] + generator.normal(size=(60, 1)), np.exp(rate)[:, None], rate[:, None])
    assert table.rho_KF[0, 0] > 0.5 and np.isnan(table.partial_KF[0, 0])


def test_undefined_p_values_do_not_count():
    p = np.array([0.01, np.nan, 0.04, 0.5])
    assert false_discovery(p)[[0, 2, 3]] == pytest.approx(false_discovery_control(p[[0, 2, 3]])) and np.isnan(false_discovery(p)[1])
    assert np.isnan(false_discovery(np.full(3, np.nan))).all()


def planted(n_patients=160, per=6, seed=0):
    """Concept 0 follows rate, 1 a feature beyond rate, 2 nothing, 3 never fires; feature 1 follows rate too."""
    generator = np.random.default_rng(seed)
    who = np.repeat([f"p{i:03d}" for i in range(n_patients)], per)
    rate = np.repeat(generator.uniform(50, 110, n_patients), per) + generator.normal(0, 4, n_patients * per)
    shape = np.repeat(generator.normal(size=n_patients), per)
    noise = generator.normal(size=(n_patients * per, 4))
    codes = np.stack(
        [np.maximum((rate - 70) / 20 + 0.3 * noise[:, 0], 0), np.maximum(shape + 0.5 * noise[:, 1], 0), np.maximum(noise[:, 2], 0), 0 * rate], axis=1
    )
    features = np.stack([shape + 0.02 * rate + 0.2 * noise[:, 3], rate / 20 + 0.4 * noise[:, 3]], axis=1)
    age = np.repeat(generator.uniform(20, 85, n_patients), per)
    return Windows(codes=as_codes(codes), features_NF=features, rate_bpm_N=rate, subject_N=who, age_N=age, male_N=np.repeat(np.arange(n_patients) % 2, per))


def halves(windows, n=100):
    train = np.char.replace(windows.subject_N, "p", "").astype(int) < n
    return windows.part(np.flatnonzero(train)), windows.part(np.flatnonzero(~train))


def test_a_rate_concept_is_flagged_and_a_shape_concept_confirmed():
    train, test = halves(planted())
    found = ground(train, test, ["crest", "rate twin"])
    assert [g.verdict for g in found] == ["rate only", "confirmed", "unexplained", "dead"]
    best = found[1].pairs[0]
    assert best.feature == "crest" and best.confirmed and best.partial > 0.5 and best.test_partial > 0.5 and best.stratified > 0.3
    assert found[0].rate_rho > 0.8 and not found[0].pairs and found[3].rate_rho is None


def test_a_relation_of_training_patients_alone_is_selected_and_not_confirmed():
    train, test = halves(planted())
    opposite = Windows(**{**vars(test), "features_NF": -test.features_NF})
    found = ground(train, opposite, ["crest", "rate twin"])[1]
    assert found.verdict == "selected" and found.pairs[0].test_partial < 0 < found.pairs[0].partial


def test_two_sides_with_one_patient_are_refused_and_few_patients_leave_an_empty_table():
    windows = planted(12)
    with pytest.raises(ValueError, match="both sides"):
        ground(windows, windows, ["a", "b"])
    one, two = windows.part(np.arange(6)), windows.part(np.arange(6, 12))
    found = ground(one, two, ["a", "b"])
    assert {g.verdict for g in found} <= {"unexplained", "dead"} and all(g.rate_rho is None and not g.pairs for g in found)
    with pytest.raises(ValueError, match="feature_names"):
        ground(one, two, ["a"])
    with pytest.raises(ValueError, match="gate"):
        GroundConfig(gate=1.0)


def test_auroc_of_sparse_codes_and_the_rate_confounder():
    windows = planted(200, 20)
    generator = np.random.default_rng(0)
    fast = (windows.rate_bpm_N + generator.normal(0, 5, len(windows.rate_bpm_N)) > 90).astype(int)
    stiff = (np.asarray(windows.codes[:, [1]].todense()).reshape(-1) + 0.3 * generator.normal(size=len(fast)) > 0.8).astype(int)
    dense = windows.codes.toarray()
    assert aurocs(windows.codes, fast == 1) == pytest.approx([roc_auc_score(fast, dense[:, k]) for k in range(4)])
    side = np.char.replace(windows.subject_N, "p", "").astype(int) < 100
    sides = np.flatnonzero(side), np.flatnonzero(~side)
    only = np.where(side, stiff, generator.permutation(stiff))  # goes with concept 1 in training patients alone
    findings = {"fast": fast, "stiff": stiff, "flat": np.zeros(len(fast)), "only": only}
    found = enrich(windows.codes, findings, windows.subject_N, windows.rate_bpm_N, *sides)
    by = {(e.concept, e.finding): e for e in found.found}
    assert by[1, "stiff"].confirmed and not by[1, "stiff"].rate_confounded and by[0, "fast"].train_q < 0.05
    assert by[1, "stiff"].auroc == pytest.approx(roc_auc_score(stiff[~side], dense[~side, 1]))
    assert by[1, "stiff"].train_auroc == pytest.approx(roc_auc_score(stiff[side], dense[side, 1]))
    assert by[1, "only"].train_auroc > 0.7 and not by[1, "only"].confirmed and by[1, "only"].auroc == pytest.approx(0.5, abs=0.1)
    assert found.kind_K[1] == "separable" and found.kind_K[3] == "dead"
    assert sum(found.taxonomy.values()) == 4 and found.notes == ("flat: one class only among the training windows",)
    coarse = enrich(windows.codes, {"fast": (windows.rate_bpm_N > 80).astype(int)}, windows.subject_N, windows.rate_bpm_N, *sides)
    assert all(e.stratified is None for e in coarse.found)
    with pytest.raises(ValueError, match="split by patient"):
        enrich(windows.codes, findings, windows.subject_N, windows.rate_bpm_N, sides[0], sides[0])


def test_beats_are_cut_at_their_onsets_and_scaled():
    fs, beat = 100.0, np.sin(np.pi * np.linspace(0, 1, 81)) ** 2
    x = np.concatenate([beat[:-1]] * 5)[None] * 3.0 + 0.01 * np.arange(400)
    shape, n = phase_beats(x, [np.arange(0, 400, 80)], n_points=41)
    assert n[0] == 4 and shape[0] == pytest.approx(np.interp(np.linspace(0, 80, 41), np.arange(81), beat), abs=1e-2)
    rise = steepest_rises(x[0], np.arange(0, 400, 80))
    assert rise == pytest.approx(np.arange(4) * 80 + 20, abs=2)
    about, n = aligned_beats(x, [rise], fs, before_s=0.2, after_s=0.4)
    assert n[0] == 4 and np.ptp(about[0]) == pytest.approx(1, abs=1e-3) and about.shape[1] == 61
    assert np.isnan(phase_beats(x, [np.array([10])])[0]).all()


def test_matched_windows_agree_in_rate_age_and_sex_and_come_from_other_patients():
    windows = planted(200, 10)
    code = windows.codes.toarray()[:, 1]
    cfg = MatchConfig(per_patient=2)
    pairs = matched_windows(code, windows.subject_N, windows.rate_bpm_N, cfg, age_N=windows.age_N, male_N=windows.male_N)
    high, low = pairs.T
    assert len(pairs) > 40 and (code[high] > 0).all() and (code[low] == 0).all() and (windows.subject_N[high] != windows.subject_N[low]).all()
    assert np.abs(windows.rate_bpm_N[high] - windows.rate_bpm_N[low]).max() <= 5 and np.abs(windows.age_N[high] - windows.age_N[low]).max() <= 5
    assert (windows.male_N[high] == windows.male_N[low]).all() and len(np.unique(low)) == len(low)
    for side in (high, low):
        assert np.unique(windows.subject_N[side], return_counts=True)[1].max() <= 2
    assert matched_windows(np.zeros(2000), windows.subject_N, windows.rate_bpm_N).shape == (0, 2)


def test_the_average_beat_differs_where_the_concept_acts_and_nowhere_else():
    generator = np.random.default_rng(0)
    who, code = np.repeat(np.arange(80), 5), np.repeat(np.arange(80) % 2, 5).astype(float)
    beats = 0.1 * generator.normal(size=(400, 50))
    beats[code > 0, 20:30] += 0.5
    pairs = matched_windows(code, who, np.full(400, 60.0))
    found = compare(beats, pairs, who, n_resamples=300)
    assert (found.p_P[20:30] < 0.05).all() and (np.delete(found.p_P, np.arange(19, 31)) > 0.05).all() and found.n_patients == 40
    assert found.difference_P[20:30] == pytest.approx(0.5, abs=0.08) and (found.difference_band_2P[0] < found.difference_P).all()
    few = compare(beats, pairs[:20], who)
    assert few.high_P is None and "30 are needed" in few.note


def test_the_permutation_keeps_its_level_where_there_is_nothing():
    generator = np.random.default_rng(1)
    hits = sum(min(cluster_permutation(generator.normal(size=(30, 40)), n_permutations=99, seed=n)[0]) <= 0.05 for n in range(60))
    assert hits <= 9  # 3 expected; above 9 has a chance below 0.1 %


def test_occlusion_finds_the_phase_that_a_concept_reads():
    generator = np.random.default_rng(0)
    beat = np.sin(np.linspace(0, np.pi, 50, endpoint=False))
    x = np.tile(beat, (60, 1, 6)).astype(np.float32) * generator.uniform(0.8, 1.2, (60, 1, 1)).astype(np.float32)
    onset = [np.arange(0, 301, 50)] * 60

    def encode(w):  # concept 0: curvature about phase 0.5; concept 1 never fires
        phases = w[:, 0].reshape(len(w), 6, 50)
        return np.stack([np.maximum(phases[:, :, 25] - phases[:, :, [21, 29]].mean(-1), 0).mean(1), np.zeros(len(w))], axis=1)

    found = occlude(encode, x, onset, np.repeat(np.arange(20), 3), n_bins=5)
    assert found.effect_BK[:, 0].argmin() == 2 and found.effect_BK[2, 0] < -0.9 and (np.abs(found.effect_BK[[0, 4], 0]) < 1e-3).all()
    assert found.band_2BK[0, 2, 0] <= found.effect_BK[2, 0] <= found.band_2BK[1, 2, 0] and "1 concepts fire in none" in found.note
    assert found.control_BK[2, 0] > found.effect_BK[2, 0] and np.isfinite(found.effect_BK).all()
    assert occlude(encode, x, [np.array([3])] * 60, np.arange(60)).effect_BK is None
    with pytest.raises(ValueError, match="n_bins"):
        occlude(encode, x, onset, np.arange(60), n_bins=1)


def test_a_flattened_span_is_a_straight_line_and_the_rest_untouched():
    x = np.random.default_rng(0).normal(size=(2, 3, 40)).astype(np.float32)
    out = flattened(x, [[(10, 20)], []])
    assert (out[1] == x[1]).all() and (out[0, :, :10] == x[0, :, :10]).all() and (out[0, :, 20:] == x[0, :, 20:]).all()
    for c in range(3):
        assert out[0, c, 9:21] == pytest.approx(np.linspace(x[0, c, 9], x[0, c, 20], 12), abs=1e-6)


def test_steering_says_what_cannot_be_decoded():
    tokens = np.ones((2, 3, 4), np.float32)
    with pytest.raises(ValueError, match="cannot decode 'pooled'"):
        steer(np.ones(4), tokens, None)
    before, after = steer(np.ones(4), tokens, lambda t: t.sum((1, 2)))
    assert (before == 12).all() and (after == 24).all()
