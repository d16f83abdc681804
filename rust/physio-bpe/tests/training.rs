//! The trainer finds the merges that recounting everything finds.
#![allow(clippy::unwrap_used)]

mod reference;

use physio_bpe::{Error, Progress, Segments, Trained, train};
use reference::Random;

fn batch(sequences: &[Vec<u8>]) -> (Vec<u8>, Vec<i64>) {
    let mut offsets = vec![0];
    for sequence in sequences {
        offsets.push(offsets[offsets.len() - 1] + sequence.len() as i64);
    }
    (sequences.concat(), offsets)
}

fn trained(sequences: &[Vec<u8>], weights: Option<&[u64]>, n_merges: usize, n_threads: usize) -> Trained {
    let (symbols, offsets) = batch(sequences);
    train(&Segments::new(&symbols, &offsets).unwrap(), weights, n_merges, n_threads, &mut |_: Progress| true).unwrap()
}

fn expected(sequences: &[Vec<u8>], weights: Option<&[u64]>, n_merges: usize) -> Trained {
    let slices: Vec<&[u8]> = sequences.iter().map(Vec::as_slice).collect();
    let ones = vec![1; sequences.len()];
    let (pairs, counts) = reference::train(&slices, weights.unwrap_or(&ones), n_merges, 1);
    Trained { pairs, counts }
}

#[test]
fn merges_equal_recounting_everything_for_any_number_of_threads() {
    let mut random = Random(7);
    for round in 0..300 {
        let n_levels = [1, 2, 3, 5, 26][round % 5];
        let smooth = round % 2 == 0;
        let sequences: Vec<Vec<u8>> = (0..1 + random.below(12))
            .map(|_| {
                let length = random.below(200) as usize;
                random.symbols(length, n_levels, smooth)
            })
            .collect();
        let n_merges = 1 + random.below(80) as usize;
        let want = expected(&sequences, None, n_merges);
        for n_threads in [1, 2, 4] {
            assert_eq!(trained(&sequences, None, n_merges, n_threads), want, "round {round}, {n_threads} threads");
        }
    }
}

#[test]
fn a_weight_counts_as_that_many_copies() {
    let mut random = Random(11);
    for round in 0..150 {
        let n_levels = [2, 4, 26][round % 3];
        let sequences: Vec<Vec<u8>> = (0..1 + random.below(20))
            .map(|_| {
                let length = random.below(90) as usize;
                random.symbols(length, n_levels, true)
            })
            .collect();
        let weights: Vec<u64> = sequences.iter().map(|_| random.below(5)).collect();
        let copies: Vec<Vec<u8>> = sequences.iter().zip(&weights).flat_map(|(sequence, &n)| vec![sequence.clone(); n as usize]).collect();
        let want = expected(&copies, None, 40);
        for n_threads in [1, 3] {
            assert_eq!(trained(&sequences, Some(&weights), 40, n_threads), want, "round {round}");
        }
    }
}

#[test]
fn long_training_passes_through_many_generations() {
    let mut random = Random(3);
    let sequences: Vec<Vec<u8>> = (0..40).map(|_| random.symbols(1000, 12, true)).collect();
    let want = expected(&sequences, None, 700);
    assert_eq!(want.pairs.len(), 700);
    assert_eq!(trained(&sequences, None, 700, 1), want);
    assert_eq!(trained(&sequences, None, 700, 4), want);
}

#[test]
fn wide_cells_find_the_same_merges() {
    let mut random = Random(5);
    let sequences: Vec<Vec<u8>> = (0..300).map(|_| random.symbols(500, 40, false)).collect();
    let many = trained(&sequences, None, 140_000, 2);
    assert!(many.pairs.len() > 66_000, "this corpus must need ids above 65,535, got {}", many.pairs.len());
    let few = trained(&sequences, None, 60_000, 1);
    assert_eq!(many.pairs[..60_000], few.pairs[..]);
    assert_eq!(many.counts[..60_000], few.counts[..]);
}

#[test]
fn training_stops_cleanly_when_no_pair_is_left() {
    assert_eq!(trained(&[], None, 10, 2), Trained::default());
    assert_eq!(trained(&[vec![], vec![9]], None, 10, 2), Trained::default());
    assert_eq!(trained(&[vec![7; 5]], None, usize::pow(2, 20), 1).pairs, [(7, 7), (256, 7), (256, 257)]);
}

#[test]
fn a_caller_can_stop_it() {
    let symbols = vec![1; 100];
    let stopped = train(&Segments::new(&symbols, &[0, 100]).unwrap(), None, 5, 1, &mut |_: Progress| false);
    assert_eq!(stopped, Err(Error::Interrupted));
}

#[test]
fn bad_input_names_the_place() {
    let refused = |symbols: &[u8], offsets: &[i64]| Segments::new(symbols, offsets).map(|_| ()).unwrap_err();
    assert_eq!(refused(&[], &[]), Error::OffsetsEmpty);
    assert_eq!(refused(&[1], &[1]), Error::OffsetsStart(1));
    assert_eq!(refused(&[1, 2], &[0, 2, 1]), Error::OffsetsDecrease { at: 2, value: 1, before: 2 });
    assert_eq!(refused(&[1, 2], &[0, 1 << 31]), Error::OffsetsEnd { value: 1 << 31, n_values: 2 });
    let segments = Segments::new(&[1, 2, 3], &[0, 1, 3]).unwrap();
    let go = &mut |_: Progress| true;
    assert_eq!(train(&segments, Some(&[1]), 5, 1, go), Err(Error::WeightsLength { n_weights: 1, n_segments: 2 }));
    assert_eq!(train(&segments, Some(&[1, u64::MAX]), 5, 1, go), Err(Error::WeightsOverflow { segment: 1 }));
    assert!(matches!(train(&segments, None, usize::MAX, 1, go), Err(Error::TooManyMerges { .. })));
}
