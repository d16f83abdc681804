import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from physio_bpe.ragged import frame, pad, total_per_sequence

SEQUENCES = st.lists(st.lists(st.integers(0, 999), max_size=8), min_size=1, max_size=6)


def joined(sequences):
    offsets = np.cumsum([0, *map(len, sequences)]).astype(np.int64)
    return np.array([value for sequence in sequences for value in sequence], np.uint32), offsets


@given(sequences=SEQUENCES, bos=st.sampled_from([None, 7000]), eos=st.sampled_from([None, 7001]), max_length=st.none() | st.integers(3, 9))
def test_framing_is_what_a_loop_over_lists_gives(sequences, bos, eos, max_length):
    framed = frame(*joined(sequences), bos=bos, eos=eos, max_length=max_length)
    room = 10**9 if max_length is None else max_length - (bos is not None) - (eos is not None)
    for i, sequence in enumerate(sequences):
        expected = ([bos] if bos is not None else []) + sequence[:room] + ([eos] if eos is not None else [])
        assert framed.ids[framed.offsets[i] : framed.offsets[i + 1]].tolist() == expected
        assert framed.n_cut[i] == len(sequence) - len(sequence[:room])
    assert framed.kept.tolist() == [place < room for sequence in sequences for place in range(len(sequence))]


@given(sequences=SEQUENCES, side=st.sampled_from(["right", "left"]), extra=st.integers(0, 3))
def test_padding_is_what_a_loop_over_lists_gives(sequences, side, extra):
    longest = max(map(len, sequences)) + extra
    padded_NL, real_NL = pad(*joined(sequences), 5, length=longest if extra else None, side=side)
    for i, sequence in enumerate(sequences):
        fill = [5] * (longest - len(sequence))
        assert padded_NL[i].tolist() == (sequence + fill if side == "right" else fill + sequence)
        assert real_NL[i].sum() == len(sequence)
    assert padded_NL.dtype == np.int64


def test_sums_per_sequence():
    _, offsets = joined([[1, 2], [], [3]])
    assert total_per_sequence(np.array([10, 20, 30]), offsets).tolist() == [30, 0, 30]


def test_lengths_that_leave_no_room_are_refused():
    ids, offsets = joined([[1, 2, 3], [4]])
    with pytest.raises(ValueError, match="max_length must leave room for a token beside 2 special ones, got 2"):
        frame(ids, offsets, bos=1, eos=2, max_length=2)
    with pytest.raises(ValueError, match="length=2 is shorter than sequence 0 with 3 tokens"):
        pad(ids, offsets, 0, length=2)
    with pytest.raises(ValueError, match="side must be"):
        pad(ids, offsets, 0, side="both")
