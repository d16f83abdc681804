//! The encoders give what slow statements of their rules give.
#![allow(clippy::unwrap_used)]

mod reference;

use physio_bpe::{Encoder, Error, Mode, Progress, QueueEncoder, Segments, Vocabulary, decode, train};
use reference::{MapTrie, Random};

fn encode(encoder: &Encoder, symbols: &[u8], offsets: &[i64], mode: Mode, n_threads: usize) -> (Vec<u32>, Vec<i64>) {
    let out = encoder.encode(&Segments::new(symbols, offsets).unwrap(), mode, n_threads, &mut || true).unwrap();
    (out.values, out.offsets)
}

fn encode_one(encoder: &Encoder, symbols: &[u8], mode: Mode) -> Vec<u32> {
    encode(encoder, symbols, &[0, symbols.len() as i64], mode, 1).0
}

fn trained_pairs(random: &mut Random, n_levels: u64, length: usize, n_merges: usize) -> Vec<(u32, u32)> {
    let corpus = random.symbols(length, n_levels, true);
    train(&Segments::new(&corpus, &[0, length as i64]).unwrap(), None, n_merges, 1, &mut |_: Progress| true).unwrap().pairs
}

/// Merges of arbitrary earlier ids; those that would spell an earlier token are left out.
fn arbitrary_pairs(random: &mut Random, n_levels: u64, n_merges: usize) -> Vec<(u32, u32)> {
    let mut pairs: Vec<(u32, u32)> = Vec::new();
    for _ in 0..n_merges {
        let pick = |random: &mut Random| {
            let i = random.below(n_levels + pairs.len() as u64) as u32;
            if u64::from(i) < n_levels { i } else { 256 + i - n_levels as u32 }
        };
        let pair = (pick(random), pick(random));
        let strings = reference::strings(&[pairs.as_slice(), &[pair]].concat());
        let (last, earlier) = strings.split_last().unwrap();
        if last.len() <= 40 && !earlier.contains(last) {
            pairs.push(pair);
        }
    }
    pairs
}

#[test]
fn rank_order_equals_merging_by_scanning_for_trained_and_arbitrary_merges() {
    let mut random = Random(21);
    for round in 0..400 {
        let n_levels = [1, 2, 3, 6, 26][round % 5];
        let n_merges = 1 + random.below(60) as usize;
        let pairs = if round % 2 == 0 { trained_pairs(&mut random, n_levels, 600, n_merges) } else { arbitrary_pairs(&mut random, n_levels, n_merges) };
        let vocabulary = Vocabulary::new(pairs.clone()).unwrap();
        let mut queue = QueueEncoder::default();
        let encoder = Encoder::new(Vocabulary::new(pairs.clone()).unwrap());
        for smooth in [true, false] {
            let length = random.below(150) as usize;
            let symbols = random.symbols(length, n_levels + 1, smooth);
            let want = reference::encode_rank(&pairs, &symbols);
            assert_eq!(encode_one(&encoder, &symbols, Mode::Rank), want, "round {round}: {pairs:?} on {symbols:?}");
            let mut ids = Vec::new();
            queue.encode(&vocabulary, &symbols, &mut ids);
            assert_eq!(ids, want, "queue, round {round}: {pairs:?} on {symbols:?}");
        }
    }
}

#[test]
fn tokens_may_be_longer_than_a_quarter_of_the_line() {
    let pairs: Vec<(u32, u32)> = vec![(7, 7), (256, 256), (257, 257), (258, 258), (259, 259), (260, 8), (8, 259), (261, 262)];
    let encoder = Encoder::new(Vocabulary::new(pairs.clone()).unwrap());
    for length in 0..150 {
        for at in [0, 1, length / 4, length / 2, 40, 99, 140] {
            let mut symbols = vec![7; length];
            symbols.insert(at.min(length), 8);
            assert_eq!(encode_one(&encoder, &symbols, Mode::Rank), reference::encode_rank(&pairs, &symbols), "{length} with 8 at {at}");
        }
    }
}

#[test]
fn longest_match_equals_a_tree_of_maps() {
    let mut random = Random(22);
    for round in 0..400 {
        let n_levels = [1, 2, 3, 6, 26][round % 5];
        let n_merges = 1 + random.below(60) as usize;
        let pairs = if round % 2 == 0 { trained_pairs(&mut random, n_levels, 600, n_merges) } else { arbitrary_pairs(&mut random, n_levels, n_merges) };
        let trie = MapTrie::new(&reference::strings(&pairs));
        let encoder = Encoder::new(Vocabulary::new(pairs).unwrap());
        for smooth in [true, false] {
            let length = random.below(300) as usize;
            let symbols = random.symbols(length, n_levels + 1, smooth);
            assert_eq!(encode_one(&encoder, &symbols, Mode::Longest), trie.encode(&symbols), "round {round}");
        }
    }
}

#[test]
fn only_trained_tokens_are_all_reachable() {
    let mut random = Random(23);
    for _ in 0..40 {
        let vocabulary = Vocabulary::new(trained_pairs(&mut random, 5, 2000, 150)).unwrap();
        assert!((0..vocabulary.n_tokens() as u32).all(|id| vocabulary.is_reachable(id)));
        let pairs = arbitrary_pairs(&mut random, 3, 50);
        let vocabulary = Vocabulary::new(pairs.clone()).unwrap();
        for (id, string) in (0..).zip(reference::strings(&pairs)) {
            assert_eq!(vocabulary.is_reachable(id), reference::encode_rank(&pairs, &string) == [id]);
        }
    }
}

#[test]
fn batches_give_the_same_on_any_number_of_threads_and_decode_to_the_input() {
    let mut random = Random(24);
    let encoder = Encoder::new(Vocabulary::new(trained_pairs(&mut random, 26, 100_000, 500)).unwrap());
    let (mut symbols, mut offsets) = (Vec::new(), vec![0]);
    for i in 0..900 {
        let length = if i == 500 { 200_000 } else { random.below(700) as usize };
        symbols.extend(random.symbols(length, 27, true));
        offsets.push(symbols.len() as i64);
    }
    for mode in [Mode::Rank, Mode::Longest] {
        let (ids, id_offsets) = encode(&encoder, &symbols, &offsets, mode, 1);
        for n_threads in [2, 5] {
            assert_eq!(encode(&encoder, &symbols, &offsets, mode, n_threads), (ids.clone(), id_offsets.clone()));
            let back = decode(encoder.vocabulary(), &Segments::new(&ids, &id_offsets).unwrap(), n_threads, &mut || true).unwrap();
            assert_eq!((&back.values, &back.offsets), (&symbols, &offsets));
        }
        for i in [0, 17, 500, 899] {
            let one = encode_one(&encoder, &symbols[offsets[i] as usize..offsets[i + 1] as usize], mode);
            assert_eq!(one, ids[id_offsets[i] as usize..id_offsets[i + 1] as usize], "sequence {i}");
        }
    }
}

#[test]
fn all_256_symbols_may_be_in_use() {
    let pairs: Vec<(u32, u32)> = (0..256).map(|symbol| (symbol, 255 - symbol)).collect();
    let encoder = Encoder::new(Vocabulary::new(pairs.clone()).unwrap());
    let symbols: Vec<u8> = (0..2000u32).map(|i| (i * i % 256) as u8).chain((0..=255).flat_map(|symbol| [symbol, 255 - symbol])).collect();
    assert_eq!(encode_one(&encoder, &symbols, Mode::Rank), reference::encode_rank(&pairs, &symbols));
    assert_eq!(encode_one(&encoder, &symbols, Mode::Longest), MapTrie::new(&reference::strings(&pairs)).encode(&symbols));
}

#[test]
fn tokens_of_enormous_length_are_encoded_by_rank_and_refused_by_longest_match() {
    let doubling: Vec<(u32, u32)> = (0..24).map(|i| if i == 0 { (7, 7) } else { (255 + i, 255 + i) }).collect();
    let encoder = Encoder::new(Vocabulary::new([doubling.as_slice(), &(0..255).map(|i| (i, i + 1)).collect::<Vec<_>>()].concat()).unwrap());
    assert_eq!(encode_one(&encoder, &[7; 37], Mode::Rank), [260, 257, 7]);
    let refused = encoder.encode(&Segments::new(&[7; 9], &[0, 9]).unwrap(), Mode::Longest, 1, &mut || true);
    assert!(matches!(refused, Err(Error::TreeTooLarge { .. })), "{refused:?}");
}

#[test]
fn bad_vocabularies_and_ids_name_the_place() {
    let refused = |pairs: &[(u32, u32)]| Vocabulary::new(pairs.to_vec()).unwrap_err();
    assert_eq!(refused(&[(1, 2), (3, 257)]), Error::UnknownPart { merge: 1, pair: (3, 257) });
    assert_eq!(refused(&[(256, 2)]), Error::UnknownPart { merge: 0, pair: (256, 2) });
    assert_eq!(refused(&[(1, 2), (2, 3), (256, 3), (1, 257)]), Error::DuplicateToken { id: 259, earlier: 258 });
    assert_eq!(refused(&[(1, 2), (1, 2)]), Error::DuplicateToken { id: 257, earlier: 256 });
    let doubling: Vec<(u32, u32)> = (0..200).map(|i| if i == 0 { (7, 7) } else { (255 + i, 255 + i) }).collect();
    assert!(matches!(refused(&doubling), Error::TokenTooLong { id: 280, .. }));
    let vocabulary = Vocabulary::new(vec![(1, 2)]).unwrap();
    let ids = decode(&vocabulary, &Segments::new(&[256, 257], &[0, 2]).unwrap(), 1, &mut || true);
    assert_eq!(ids, Err(Error::UnknownId { at: 1, id: 257, n_tokens: 257 }));
}
