//! Whether two tokens stay apart where they meet: asked for a few pairs per token of every text, so answered in steps.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::vocabulary::{N_SYMBOLS, Vocabulary};

const CACHE_BITS: u32 = 16; // half a MiB of verdicts
const MIX: u64 = 0x9E37_79B9_7F4A_7C15; // 2^64 / golden ratio
const NEVER: u32 = u32::MAX;

/// The symbol at one edge of a token and the first merge that took it.
#[derive(Debug, Clone, Copy)]
struct Edge {
    column: u32,
    parent: u32,
}

/// Answers by the symbols at the border, then from memory, then by un-merging both tokens.
#[derive(Debug)]
pub(crate) struct Apart {
    last: Vec<Edge>,  // at the right edge of each token
    first: Vec<Edge>, // at the left edge
    merged: Vec<u32>, // of two symbols, by column
    width: usize,
    /// Verdicts on pairs: left, right and the verdict in one word, so that any thread may replace it at any time.
    cache: Vec<AtomicU64>,
}

impl Apart {
    /// `column` and `width` number the symbols that occur in merges from 1.
    pub(crate) fn new(vocabulary: &Vocabulary, column: &[u16; N_SYMBOLS], width: usize) -> Self {
        let single = |symbol: usize| Edge { column: u32::from(column[symbol]), parent: NEVER };
        let mut last: Vec<Edge> = (0..N_SYMBOLS).map(single).collect();
        let mut first = last.clone();
        let mut merged = vec![NEVER; width * width];
        for (id, &(left, right)) in (N_SYMBOLS as u32..).zip(vocabulary.pairs()) {
            let join = |edge: Edge| Edge { parent: edge.parent.min(id), ..edge };
            last.push(join(last[right as usize]));
            first.push(join(first[left as usize]));
            if let (Some(left), Some(right)) = (column.get(left as usize), column.get(right as usize)) {
                merged[usize::from(*left) * width + usize::from(*right)] = id;
            }
        }
        let cache = (0..1usize << CACHE_BITS).map(|_| AtomicU64::new(u64::MAX)).collect();
        Self { last, first, merged, width, cache }
    }

    #[inline]
    pub(crate) fn holds(&self, vocabulary: &Vocabulary, left: u32, right: u32) -> bool {
        let (last, first) = (self.last[left as usize], self.first[right as usize]);
        let crossing = self.merged[last.column as usize * self.width + first.column as usize];
        if crossing < last.parent && crossing <= first.parent {
            return false;
        }
        let key = u64::from(left) << 32 | u64::from(right) << 1;
        let slot = &self.cache[(key.wrapping_mul(MIX) >> (64 - CACHE_BITS)) as usize];
        let seen = slot.load(Ordering::Relaxed);
        if seen | 1 == key | 1 {
            return seen & 1 != 0;
        }
        let verdict = vocabulary.stays_apart(left, right);
        slot.store(key | u64::from(verdict), Ordering::Relaxed);
        verdict
    }
}
