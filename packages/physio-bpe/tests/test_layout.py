import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from physio_bpe import LAYOUTS, SignalError
from physio_bpe.layout import check_layout, flatten, spans, unflatten

SYMBOLS_NCT = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


def test_the_three_orders():
    line, borders = flatten(SYMBOLS_NCT, "lead_major")
    assert line.tolist() == list(range(24)) and borders.tolist() == [0, 12, 24]
    line, borders = flatten(SYMBOLS_NCT, "per_lead")
    assert line.tolist() == list(range(24)) and borders.tolist() == [0, 4, 8, 12, 16, 20, 24]
    line, borders = flatten(SYMBOLS_NCT, "interleaved")
    assert line.tolist()[:6] == [0, 4, 8, 1, 5, 9] and borders.tolist() == [0, 12, 24]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_line_becomes_its_record_again(layout):
    line, _ = flatten(SYMBOLS_NCT[:1], layout)
    assert np.array_equal(unflatten(line, 3, layout), SYMBOLS_NCT[0])


@given(drawn=st.lists(st.integers(0, 15), max_size=12), n_leads=st.integers(1, 4), n_samples=st.integers(1, 12), layout=st.sampled_from(LAYOUTS))
def test_spans_are_what_each_symbol_says(drawn, n_leads, n_samples, layout):
    lengths, left = [], n_leads * n_samples
    for length in drawn:  # a record that was cut ends early
        lengths.append(min(length, left))
        left -= lengths[-1]
    order, _ = flatten(np.arange(n_leads * n_samples, dtype=np.uint8).reshape(1, n_leads, n_samples), layout)
    expected = set()  # symbol by symbol: which token covers which sample of which lead
    at = 0
    for token, length in enumerate(lengths):
        expected |= {(token, int(place) // n_samples, int(place) % n_samples) for place in order[at : at + length]}
        at += length
    found = spans(np.array(lengths, np.int64), n_leads, n_samples, layout)
    covered = [(token, lead, sample) for token, lead, start, stop in zip(*(column.tolist() for column in found), strict=True) for sample in range(start, stop)]
    assert len(covered) == len(set(covered)) and set(covered) == expected
    assert (found.stop > found.start).all() and (np.diff(found.token) >= 0).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="layout must be one of lead_major"):
        check_layout("time_major")
    with pytest.raises(SignalError, match="7 symbols are no whole number of samples of 3 leads"):
        unflatten(np.zeros(7, np.uint8), 3, "lead_major")
    with pytest.raises(SignalError, match="cover 13 symbols, more than 3 leads of 4 samples"):
        spans(np.array([12, 1]), 3, 4, "lead_major")
    with pytest.raises(SignalError, match="must be positive, got 3 and 0"):
        spans(np.array([1]), 3, 0, "lead_major")
