"""Folds keep subjects whole, even out labels, and differ from repeat to repeat."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from physio_train.folds import check_apart, grouped_folds, outer_folds


def records(seed=0, n=23, each=20):
    rng = np.random.default_rng(seed)
    group = np.repeat([f"r{i:02d}" for i in range(n)], each)
    rate = rng.beta(0.4, 1.2, n)[np.repeat(np.arange(n), each)]
    return group, (rng.random(len(group)) < rate).astype(int)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), n_groups=st.integers(2, 12), n_folds=st.integers(2, 5), kind=st.sampled_from(["class", "real", "multilabel", "unknown"]))
def test_no_group_is_ever_on_two_sides_and_no_fold_is_empty(seed, n_groups, n_folds, kind):
    rng = np.random.default_rng(seed)
    group = np.concatenate([np.arange(n_groups), rng.integers(0, n_groups, 40)])
    y = {
        "class": rng.integers(-1, 3, len(group)),
        "real": rng.normal(size=len(group)),
        "multilabel": rng.integers(0, 2, (len(group), 3)),
        "unknown": np.full(len(group), np.nan),
    }[kind]
    if n_folds > n_groups:
        with pytest.raises(ValueError, match="n_folds" if n_groups > 1 else "one subject"):
            grouped_folds(group, y, n_folds, seed)
        return
    fold = grouped_folds(group, y, n_folds, seed)
    assert all(len(set(fold[group == g])) == 1 for g in range(n_groups))
    assert set(fold) == set(range(n_folds))


def test_folds_share_groups_and_positives_evenly():
    group, y = records()
    fold = grouped_folds(group, y, 5, 0)
    assert sorted(len(set(group[fold == f])) for f in range(5)) == [4, 4, 5, 5, 5]
    share = np.array([y[fold == f].sum() for f in range(5)]) / y.sum()
    assert share.max() < 0.33 and share.min() > 0.08


def test_folds_are_the_same_for_a_seed_whatever_the_order_of_windows_and_other_for_another():
    group, y = records()
    fold = grouped_folds(group, y, 5, 1)
    order = np.random.default_rng(0).permutation(len(y))
    assert np.array_equal(grouped_folds(group[order], y[order], 5, 1), fold[order])
    other = grouped_folds(group, y, 5, 2)
    together = lambda f: f[:, None] == f[None, :]  # noqa: E731
    assert (together(fold) != together(other)).mean() > 0.1


def test_outer_folds_are_the_same_for_every_seed_and_cover_each_window_once_a_repeat():
    group, y = records()
    specs = outer_folds(group, y, n_folds=5, repeats=3, seeds=(0, 7))
    assert len(specs) == 30
    for spec in specs:
        check_apart(group[spec.train], group[spec.test])
        assert len(spec.train) + len(spec.test) == len(y)
    tests = {seed: [spec.test.tolist() for spec in specs if spec.seed == seed] for seed in (0, 7)}
    assert tests[0] == tests[7]
    covered = np.concatenate([spec.test for spec in specs if spec.seed == 7 and spec.repeat == 2])
    assert sorted(covered.tolist()) == list(range(len(y)))


def test_a_shared_group_is_named():
    with pytest.raises(ValueError, match="201"):
        check_apart(np.array(["200", "201"]), np.array(["201", "202"]))
    check_apart(np.array(["200", "201"]), np.array(["201"]), frozenset({"201"}))


def test_one_subject_alone_is_named():
    with pytest.raises(ValueError, match=r"one subject \(mitbih:100\), who cannot be on two sides"):
        grouped_folds(np.full(6, "mitbih:100"), np.arange(6) % 2, 3, 0)
