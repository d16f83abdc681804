import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from physio_data import splits

SUBJECTS = [f"mimic3:p{i:06d}" for i in range(3000)]


def test_a_subject_keeps_its_fold_when_others_join():
    few, many = splits.hash_split(SUBJECTS[:100]), splits.hash_split(reversed(SUBJECTS))
    assert few == {subject: many[subject] for subject in SUBJECTS[:100]}


def test_the_hash_is_sha256_of_subject_and_seed():
    share = int.from_bytes(hashlib.sha256(b"anna|7").digest()[:8], "big") / 2**64
    assert splits.hash_split(["anna"], {"a": share - 1e-9, "b": 1 - share + 1e-9}, seed=7) == {"anna": "b"}
    assert splits.hash_split(["anna"], {"a": share + 1e-9, "b": 1 - share - 1e-9}, seed=7) == {"anna": "a"}


def test_shares_come_out_near_the_fractions_and_seeds_differ():
    count = Counter(splits.hash_split(SUBJECTS).values())
    assert abs(count["train"] / 3000 - 0.7) < 0.03 and abs(count["test"] / 3000 - 0.15) < 0.03
    assert splits.hash_split(SUBJECTS, seed=1) != splits.hash_split(SUBJECTS)


@pytest.mark.parametrize("fractions", [{}, {"train": 0.7}, {"train": 1.2, "test": -0.2}, {"train": float("nan"), "test": 1.0}])
def test_fractions_must_be_shares_of_one(fractions):
    with pytest.raises(ValueError, match="sum to 1"):
        splits.hash_split(["a"], fractions)


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), seed=st.integers(0, 5))
def test_totals_of_a_stratified_split_are_exact_to_one_subject_and_strata_to_two(sizes, seed):
    strata = [k for k, size in enumerate(sizes) for _ in range(size)]
    subjects = [f"s{i}" for i in range(len(strata))]
    folds = splits.stratified_split(subjects, strata, seed=seed)
    for fold, share in splits.FRACTIONS.items():
        assert abs(sum(f == fold for f in folds.values()) - share * len(subjects)) <= 1.0
        for k, size in enumerate(sizes):
            assert abs(sum(folds[s] == fold for s, stratum in zip(subjects, strata, strict=True) if stratum == k) - share * size) <= 2.0


def test_a_subject_with_two_strata_is_refused():
    with pytest.raises(ValueError, match="'a' has two strata"):
        splits.stratified_split(["a", "a"], ["F", "M"])
    assert splits.stratified_split(["a", "a"], ["F", "F"]).keys() == {"a"}


def test_strata_are_ten_year_bands():
    assert splits.stratum(69.0, "M", 1) == splits.stratum(60.0, "M", 1) != splits.stratum(70.0, "M", 1)
    assert splits.stratum(float("nan"), "") == "?|?|"


def test_official_folds_cover_what_is_there():
    folds = {"train": ["101", "106"], "test": ["100"]}
    assert splits.official_folds(["100", "106"], folds) == {"100": "test", "106": "train"}
    with pytest.raises(ValueError, match="102 stand in no official fold"):
        splits.official_folds(["100", "102"], folds)
    with pytest.raises(ValueError, match="'101' under both"):
        splits.official_folds(["101"], {"train": ["101"], "test": ["101"]})


def test_a_subject_in_two_folds_is_an_error_unless_waived():
    subject_N = np.array(["mitbih:100", "mitbih:201-202", "mitbih:201-202"])
    fold_N = np.array(["train", "train", "test"])
    with pytest.raises(ValueError, match=r"'mitbih:201-202' is in two folds, test and train"):
        splits.check_disjoint(subject_N, fold_N)
    assert splits.check_disjoint(subject_N, fold_N, waivers=("mitbih-201-202",)) == ("mitbih-201-202",)
    assert splits.check_disjoint(subject_N[:2], fold_N[:2], waivers=("mitbih-201-202",)) == ()
    with pytest.raises(ValueError, match="mitbih:100"):
        splits.check_disjoint(["mitbih:100"] * 2, ["train", "test"], waivers=("mitbih-201-202",))


@given(st.lists(st.sampled_from(SUBJECTS), min_size=1, max_size=50), st.integers(0, 3))
def test_hash_splits_are_always_disjoint(subjects, seed):
    folds = splits.hash_split(subjects, seed=seed)
    assert splits.check_disjoint(subjects, [folds[s] for s in subjects]) == ()


def test_rows_without_a_fold_belong_to_none():
    assert splits.check_disjoint(["a", "a"], ["train", ""]) == ()
