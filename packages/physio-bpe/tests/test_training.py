from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from physio_bpe import LAYOUTS, LeadMinMax, SignalError, quantize, train, train_symbols


def recount_everything(segments, n_merges, weights=None):
    """Training by its definition: count all adjacent pairs anew for every merge."""
    lines = [list(segment) for segment in segments]
    merges = []
    for rank in range(n_merges):
        counts = Counter()
        for line, weight in zip(lines, weights or [1] * len(lines), strict=True):
            for pair in pairwise(line):
                counts[pair] += weight
        counts = {pair: count for pair, count in counts.items() if count}
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for line in lines:
            at = 0
            while at + 1 < len(line):
                if (line[at], line[at + 1]) == best:
                    line[at : at + 2] = [256 + rank]
                at += 1
    return merges


@given(segments=st.lists(st.text("abc", max_size=40), min_size=1, max_size=5), n_merges=st.integers(0, 40), n_threads=st.sampled_from([1, 2, 4]))
def test_merges_are_those_of_counting_everything_anew(segments, n_merges, n_threads):
    lines = [segment.encode() for segment in segments]
    tokenizer = train_symbols(lines, n_merges, n_threads=n_threads)
    assert list(map(tuple, tokenizer.merges.tolist())) == recount_everything(lines, n_merges)


@given(segments=st.lists(st.text("ab", max_size=20), min_size=2, max_size=4), data=st.data())
def test_weights_count_a_record_as_often(segments, data):
    lines = [segment.encode() for segment in segments]
    weights = data.draw(st.lists(st.integers(0, 5), min_size=len(lines), max_size=len(lines)))
    tokenizer = train_symbols(lines, 12, weights=weights)
    assert list(map(tuple, tokenizer.merges.tolist())) == recount_everything(lines, 12, weights)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_signals_train_as_their_symbols_in_that_order(layout, waves):
    symbols_NCT = quantize(waves, LeadMinMax(n_levels=8)).symbols
    lines = {
        "lead_major": [record.tobytes() for record in symbols_NCT],
        "per_lead": [lead.tobytes() for record in symbols_NCT for lead in record],
        "interleaved": [record.T.tobytes() for record in symbols_NCT],
    }[layout]
    tokenizer = train(waves, 25, quantizer=LeadMinMax(n_levels=8), layout=layout)
    assert list(map(tuple, tokenizer.merges.tolist())) == recount_everything(lines, 25)


def test_how_the_records_arrive_changes_nothing(waves):
    whole = train(waves, 60)
    parts = train((x for x in [waves[:3], waves[3], waves[4:]]), 60, n_threads=2)
    assert parts == whole and parts.corpus_sha256 == whole.corpus_sha256
    assert train(waves[:7], 60).corpus_sha256 != whole.corpus_sha256
    assert train(waves, 60, weights=[2] + [1] * 7).corpus_sha256 != whole.corpus_sha256
    twice = train(waves, 60, weights=[1] * 7 + [3], layout="per_lead")
    assert np.array_equal(twice.merges, train(np.concatenate([waves, waves[7:], waves[7:]]), 60, layout="per_lead").merges)


def test_training_stops_where_no_pair_is_left():
    assert train_symbols([b"abcab"], 1000).n_merges == 3
    assert train_symbols([b"a", b"b"], 5).n_merges == 0
    assert train_symbols([b""], 5).n_merges == 0
    assert train(np.ones((1, 1, 1)), 5).n_merges == 0
    flat = train(np.zeros((1, 2, 500)), 50)
    assert 0 < flat.n_merges < 50 and len(flat.encode(np.zeros((2, 500)))) == 1


def test_progress_is_told(waves):
    told = []
    train(waves, 40, progress=lambda done, total: told.append((done, total)))
    assert told and told[-1] == (40, 40) and told == sorted(told)


def test_an_error_in_progress_stops_training(waves):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(waves, 4000, progress=stop)


def test_bad_corpora_are_refused(waves):
    broken = waves.copy()
    broken[6, 1, 3] = np.nan
    for make, message in (
        (lambda: train([], 5), "nothing to train on"),
        (lambda: train(np.zeros((0, 3, 5)), 5), r"got shape \(0, 3, 5\)"),
        (lambda: train([waves[0], np.zeros(5)], 5), r"array 1 must be a record .* got shape \(5,\)"),
        (lambda: train([waves, broken], 5), "array 1, from its record 0 on: .*record 6, lead 1, sample 3"),
        (lambda: train(waves, -1), "n_merges must be a whole number from 0 on, got -1"),
        (lambda: train(waves, 2.5), "n_merges"),
        (lambda: train(waves, 5, weights=[1] * 7), "fewer values"),
        (lambda: train(waves, 5, weights=[1] * 9), "more values"),
        (lambda: train(waves, 5, weights=[-1] * 8), "whole numbers from 0 on, got -1"),
        (lambda: train(waves, 5, layout="rows"), "layout must be"),
        (lambda: train_symbols([np.zeros(3)], 5), "segment 0 must be bytes"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(SignalError):
        train([], 5)
