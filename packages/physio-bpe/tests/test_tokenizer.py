import pickle
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from physio_bpe import LAYOUTS, FixedRange, LeadMinMax, MuLaw, RecordMinMax, Scale, SignalError, Tokenizer, VocabularyError, train
from physio_bpe.quantize import quantize


def rank_order(symbols, merges):
    """Byte-pair encoding by its definition: merge the pair of lowest rank everywhere, left to right, until none is left."""
    ranks = {tuple(pair): rank for rank, pair in enumerate(merges)}
    line = list(symbols)
    while found := [ranks[pair] for pair in pairwise(line) if pair in ranks]:
        rank, at, merged = min(found), 0, []
        while at < len(line):
            hit = at + 1 < len(line) and ranks.get((line[at], line[at + 1])) == rank
            merged.append(256 + rank if hit else line[at])
            at += 2 if hit else 1
        line = merged
    return line


def longest(symbols, tokens):
    """The longest token at each position, by trying every length."""
    ids, at, out = {token: id for id, token in enumerate(tokens)}, 0, []
    while at < len(symbols):
        stop = next(stop for stop in range(len(symbols), at, -1) if symbols[at:stop] in ids)
        out.append(ids[symbols[at:stop]])
        at = stop
    return out


def strings(merges):
    tokens = [bytes([symbol]) for symbol in range(256)]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return tokens


@st.composite
def vocabularies(draw):
    """Merges over three letters, no two of one string; most of them no training would make."""
    merges, tokens, ids = [], strings([]), [97, 98, 99]
    for _ in range(draw(st.integers(0, 12))):
        left, right = draw(st.sampled_from(ids)), draw(st.sampled_from(ids))
        if (token := tokens[left] + tokens[right]) not in tokens and len(token) < 20:
            ids.append(len(tokens))
            merges.append((left, right))
            tokens.append(token)
    return merges


@given(merges=vocabularies(), text=st.text("abcd", max_size=60))
def test_both_rules_are_what_their_definition_says(merges, text):
    tokenizer = Tokenizer(merges=np.array(merges))
    symbols = text.encode()
    assert tokenizer.encode_symbols(symbols, mode="bpe").tolist() == rank_order(symbols, merges)
    assert tokenizer.encode_symbols(symbols, mode="longest").tolist() == longest(symbols, strings(merges))
    for mode in ("bpe", "longest"):
        assert tokenizer.decode_symbols(tokenizer.encode_symbols(symbols, mode=mode)) == symbols


@given(symbols=st.binary(max_size=80), mode=st.sampled_from(["bpe", "longest"]))
def test_any_bytes_come_back(symbols, mode):
    tokenizer = Tokenizer(merges=[(0, 255), (256, 0), (65, 66)])
    assert tokenizer.decode_symbols(tokenizer.encode_symbols(symbols, mode=mode)) == symbols


@pytest.mark.parametrize("mode", ["bpe", "longest"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "quantizer", [RecordMinMax(), LeadMinMax(n_levels=2), FixedRange(low_mv=-1.2, high_mv=3, n_levels=256), MuLaw(n_levels=100)], ids=lambda q: type(q).__name__
)
def test_a_signal_comes_back_as_its_bin_centres_and_spans_cover_it_once(quantizer, layout, mode, waves):
    tokenizer = train(waves[:6], 120, quantizer=quantizer, layout=layout)
    x_CT = waves[7]
    encoded = tokenizer.encode(x_CT, mode=mode)
    made = quantize(x_CT, quantizer)
    levels_CT = made.symbols.astype(int) - tokenizer.alphabet[0]
    u_CT = (levels_CT + 0.5) / quantizer.n_levels
    if quantizer.mu:
        u_CT = (np.sign(2 * u_CT - 1) * ((1 + quantizer.mu) ** np.abs(2 * u_CT - 1) - 1) / quantizer.mu + 1) / 2
    expected_CT = u_CT * made.scale.span[:, None] + made.scale.low[:, None]
    assert np.allclose(tokenizer.decode(encoded), expected_CT, atol=1e-5)
    covered_CT = np.zeros(x_CT.shape, int)
    for token, lead, start, stop in zip(*tokenizer.spans(encoded), strict=True):
        covered_CT[lead, start:stop] += 1
        if layout == "per_lead":
            assert stop - start == len(tokenizer.token(int(encoded.ids[token])))
    assert (covered_CT == 1).all()
    assert len(encoded) < x_CT.size


def test_per_lead_tokens_stay_in_their_lead_and_others_may_straddle():
    x_CT = np.zeros((2, 8), np.float32)
    x_CT[:, 0] = 1  # so that leads are alike: b-run, a-run
    flat_NCT = np.zeros((1, 2, 8), np.float32)
    straddling = train(flat_NCT, 4, layout="lead_major").encode(flat_NCT[0])
    apart = train(flat_NCT, 4, layout="per_lead").encode(flat_NCT[0])
    assert len(straddling) == 1 and len(apart) == 2


def test_a_batch_is_its_records(waves):
    tokenizer = train(waves, 80, layout="interleaved")
    batch = tokenizer.encode_batch(waves, bos=True, eos=True, n_threads=2)
    assert len(batch) == 8 and batch.offsets[-1] == len(batch.ids)
    for x_CT, encoded in zip(waves, batch, strict=True):
        alone = tokenizer.encode(x_CT, bos=True, eos=True)
        assert np.array_equal(encoded.ids, alone.ids) and np.array_equal(encoded.scale.low, alone.scale.low)
        assert encoded.ids[0] == tokenizer.special_id("bos") and encoded.ids[-1] == tokenizer.special_id("eos")
        assert np.allclose(tokenizer.decode(encoded), tokenizer.decode(alone))
    padded_NL, real_NL = batch.padded(length=800)
    assert padded_NL.shape == (8, 800) and (padded_NL[~real_NL] == tokenizer.special_id("pad")).all()
    assert np.array_equal(padded_NL[real_NL], batch.ids)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_list_may_hold_records_of_unequal_length(layout, waves):
    tokenizer = train(waves, 50, layout=layout)
    records = [waves[0], waves[1][:, :100], waves[2][:, :1]]
    batch = tokenizer.encode_batch(records)
    for record, encoded in zip(records, batch, strict=True):
        assert np.array_equal(encoded.ids, tokenizer.encode(record).ids) and encoded.n_samples == record.shape[1]
    with pytest.raises(SignalError, match="the 3 leads of the first, got shape \\(2, 250\\) at record 1"):
        tokenizer.encode_batch([waves[0], waves[1][:2]])
    broken = waves[1][:, :9].copy()
    broken[1, 4] = np.nan
    with pytest.raises(SignalError, match=r"record 1 of the list: .*lead 1, sample 4"):
        tokenizer.encode_batch([waves[0], broken])


def test_truncation_reports_what_it_cut(waves):
    tokenizer = train(waves, 60)
    whole = tokenizer.encode(waves[0])
    cut = tokenizer.encode(waves[0], bos=True, eos=True, max_length=42)
    assert len(cut) == 42 and np.array_equal(cut.ids[1:-1], whole.ids[:40])
    assert cut.n_cut_tokens == len(whole) - 40
    assert cut.n_cut_symbols == sum(len(tokenizer.token(int(id))) for id in whole.ids[40:])
    signal_CT = tokenizer.decode(cut)
    assert np.isnan(signal_CT).sum() == cut.n_cut_symbols
    known = ~np.isnan(signal_CT)
    assert np.array_equal(signal_CT[known], tokenizer.decode(whole)[known])
    assert whole.n_cut_tokens == whole.n_cut_symbols == 0


def test_a_given_scale_keeps_amplitudes_comparable(waves):
    tokenizer = train(waves, 20)
    scale = Scale(np.float32(-1.5), np.float32(4.5))
    batch = tokenizer.encode_batch(waves, scale=scale)
    assert np.array_equal(batch[2].ids, tokenizer.encode(waves[2], scale=scale).ids)
    assert (batch.scale.span == 4.5).all()
    assert tokenizer.encode(waves[0] * 3, scale=scale).n_clipped.sum() > 0


def test_special_tokens_follow_the_merges():
    tokenizer = Tokenizer(merges=[(97, 97), (256, 97)], special_tokens=("pad", "sep"))
    assert tokenizer.special_ids == {"pad": 258, "sep": 259} and tokenizer.n_tokens == 260
    assert tokenizer.decode_symbols([258, 257, 259, 97]) == b"aaaa" and tokenizer.token(259) == b""
    with pytest.raises(ValueError, match="no special token 'bos'; there are pad, sep"):
        tokenizer.encode(np.ones((1, 3)), bos=True)
    bare = Tokenizer(merges=[], special_tokens=())
    with pytest.raises(ValueError, match="no special token 'pad'"):
        bare.encode_batch(np.ones((1, 1, 3))).padded()


def test_the_hash_names_what_an_id_means():
    tokenizer = Tokenizer(merges=[(97, 98), (98, 97)])
    others = [
        Tokenizer(merges=[(98, 97), (97, 98)]),
        Tokenizer(merges=[(97, 98), (98, 97)], layout="per_lead"),
        Tokenizer(merges=[(97, 98), (98, 97)], quantizer=LeadMinMax()),
        Tokenizer(merges=[(97, 98), (98, 97)], special_tokens=("pad",)),
    ]
    one, same = (Tokenizer(merges=[], quantizer=FixedRange(low_mv=low, high_mv=2)) for low in (-1, np.float32(-1)))
    assert one.vocabulary_hash == same.vocabulary_hash
    assert len({tokenizer.vocabulary_hash, *(other.vocabulary_hash for other in others)}) == 5
    assert tokenizer.with_mode("longest").vocabulary_hash == tokenizer.vocabulary_hash
    assert tokenizer != tokenizer.with_mode("longest") and tokenizer == Tokenizer(merges=[(97, 98), (98, 97)])


def test_a_tokenizer_travels_to_a_worker_process(waves):
    tokenizer = train(waves, 30, mode="longest")
    there = pickle.loads(pickle.dumps(tokenizer))
    assert there == tokenizer and np.array_equal(there.encode(waves[0]).ids, tokenizer.encode(waves[0]).ids)
    with pytest.raises(ValueError, match="read-only"):
        tokenizer.merges[0] = 0


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        ([(97, 300)], r"pairs\[0\].*300"),
        ([(97, 98), (258, 97)], r"pairs\[1\]"),
        ([(97, 257), (98, 256)], r"pairs\[0\]"),  # a cycle
        ([(256, 97)], r"pairs\[0\]"),  # itself
        ([(97, 98), (97, 98)], r"pairs\[1\].*257"),  # the same pair
        ([(97, 97), (97, 256), (256, 97)], r"pairs\[2\].*258"),  # the same string
        ([(97, -1)], r"merges\[0\] is \[97, -1\]"),
        ([(97, 1 << 32)], r"merges\[0\]"),
        ([(97, 98, 99)], r"pairs of whole numbers \(M, 2\)"),
        ([(97.0, 98.0)], "float64"),
        ([(97 if i == 0 else 255 + i,) * 2 for i in range(31)], r"pairs\[\d+\].*expand"),  # 2**31 symbols
    ],
)
def test_merges_that_make_no_vocabulary_are_refused(merges, message):
    with pytest.raises(VocabularyError, match=message):
        Tokenizer(merges=merges)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([97, 5000], r"ids\[1\] is 5000, the vocabulary has ids 0 to 260"),
        ([-1], r"ids\[0\] is -1"),
        ([1.5], "whole numbers"),
        ([[97]], r"shape \(1, 1\)"),
        (["a"], "whole numbers"),
        ([1 << 40], r"ids\[0\] is 1099511627776"),
    ],
)
def test_ids_outside_the_vocabulary_are_refused(ids, message):
    tokenizer = Tokenizer(merges=[(97, 97), (98, 98)])
    for call in (tokenizer.decode_symbols, tokenizer.lengths, lambda i: tokenizer.decode_ids(i, scale=Scale(np.zeros(1), np.ones(1)), n_leads=1)):
        with pytest.raises(VocabularyError, match=message):
            call(ids)
    with pytest.raises(VocabularyError, match="id 261 is not in the vocabulary of 261 tokens"):
        tokenizer.token(261)


def test_nothing_one_symbol_and_too_much():
    tokenizer = Tokenizer(merges=[(97 if i == 0 else 255 + i,) * 2 for i in range(20)])  # up to 2**20 symbols a token
    for mode in ("bpe", "longest"):
        assert tokenizer.encode_symbols(b"", mode=mode).tolist() == []
        assert tokenizer.encode_symbols(b"a", mode=mode).tolist() == [97]
    assert tokenizer.decode_symbols([]) == b""
    assert tokenizer.encode(np.ones((1, 1))).ids.tolist() == [97]
    with pytest.raises(SignalError, match="stand for 2147483648 symbols, one call decodes up to"):
        tokenizer.decode_symbols(np.full(2048, 275))
    scale = Scale(np.zeros(1), np.ones(1))
    with pytest.raises(SignalError, match="stand for 2147483648 symbols, more than 1 leads of 5 samples"):
        tokenizer.decode_ids(np.full(2048, 275), scale=scale, n_leads=1, n_samples=5)
    with pytest.raises(SignalError, match=r"of 1 leads of 2147483648 samples are missing"):
        tokenizer.decode_ids([97], scale=scale, n_leads=1, n_samples=1 << 31)
    with pytest.raises(SignalError, match="no symbol"):
        tokenizer.decode_ids([], scale=scale, n_leads=1)
    with pytest.raises(SignalError, match="must be positive"):
        tokenizer.decode_ids([97], scale=scale, n_leads=0)
    with pytest.raises(SignalError, match="no whole number of samples of 2 leads"):
        tokenizer.decode_ids([97, 97, 97], scale=scale, n_leads=2)


def test_borders_that_lie_are_refused():
    tokenizer = Tokenizer(merges=[(97, 97)])
    line = np.frombuffer(b"aaaa", np.uint8)
    for mode in ("bpe", "longest"):
        for offsets in ([0, 1 << 31], [0, 3, 2, 4], [1, 4], [], [0, 3], [-1, 4]):
            with pytest.raises(SignalError, match="offsets"):
                tokenizer.encode_segments(line, np.array(offsets, np.int64), mode=mode)
    with pytest.raises(SignalError, match="float64"):
        tokenizer.encode_segments(line, np.array([0.0, 4.0]))
    with pytest.raises(SignalError, match="symbols must be one line of uint8"):
        tokenizer.encode_segments(line.astype(int), np.array([0, 4]))


def test_wrong_arguments_are_named(waves):
    tokenizer = train(waves, 5)
    for make, message in (
        (lambda: tokenizer.encode(waves), "encode_batch takes several"),
        (lambda: tokenizer.encode_batch(waves[0]), "a batch"),
        (lambda: tokenizer.encode_batch([]), "batch"),
        (lambda: tokenizer.encode(waves[0], mode="greedy"), "mode must be one of bpe, longest"),
        (lambda: Tokenizer(merges=[], mode="greedy"), "mode must be"),
        (lambda: Tokenizer(merges=[], layout="rows"), "layout must be"),
        (lambda: Tokenizer(merges=[], special_tokens=("pad", "pad")), "different names"),
        (lambda: Tokenizer(merges=[], quantizer=object()), "quantizer must be one of"),
        (lambda: tokenizer.encode(waves[0], max_length=0), "max_length"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
