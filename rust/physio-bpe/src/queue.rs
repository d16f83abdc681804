//! Rank-order encoding by merging, one sweep over the ranks: exact for every vocabulary, whatever the length of its tokens.
//!
//! A merge makes an id above both its parts, so pairs that it creates have higher ranks and one ascending sweep suffices. Positions wait
//! in one list per rank. A token keeps its id in its first and its last cell, so both neighbours are found at once; what lies between
//! is marked dead, so that an outdated position is seen.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::hash::{ABSENT, PairMap};
use crate::vocabulary::{N_SYMBOLS, Vocabulary};

const BORDER: u32 = u32::MAX;
const DEAD: u32 = u32::MAX - 1;

/// Buffers of the sweep, to be reused.
#[derive(Debug)]
pub struct QueueEncoder {
    cells: Vec<u32>,
    waiting: Vec<Vec<usize>>, // positions per rank in use
    slots: PairMap,           // (0, rank) -> index into `waiting`
    order: BinaryHeap<Reverse<(u32, u32)>>,
}

impl Default for QueueEncoder {
    fn default() -> Self {
        Self { cells: Vec::new(), waiting: Vec::new(), slots: PairMap::with_capacity(64), order: BinaryHeap::new() }
    }
}

impl QueueEncoder {
    /// Appends the ids of one sequence.
    pub fn encode(&mut self, vocabulary: &Vocabulary, symbols: &[u8], ids: &mut Vec<u32>) {
        self.cells.clear();
        self.cells.push(BORDER);
        self.cells.extend(symbols.iter().map(|&symbol| u32::from(symbol)));
        self.cells.push(BORDER);
        self.slots.clear();
        let mut n_slots = 0;
        for at in 1..self.cells.len() - 2 {
            self.enqueue(vocabulary, at, self.cells[at], self.cells[at + 1], &mut n_slots);
        }
        while let Some(Reverse((rank, slot))) = self.order.pop() {
            let mut positions = std::mem::take(&mut self.waiting[slot as usize]);
            self.merge_all(vocabulary, N_SYMBOLS as u32 + rank, &mut positions, &mut n_slots);
            positions.clear();
            self.waiting[slot as usize] = positions;
        }
        let mut at = 1;
        while at < self.cells.len() - 1 {
            ids.push(self.cells[at]);
            at += vocabulary.token_length(self.cells[at]) as usize;
        }
    }

    fn merge_all(&mut self, vocabulary: &Vocabulary, id: u32, positions: &mut [usize], n_slots: &mut u32) {
        let (left, right) = vocabulary.pairs()[id as usize - N_SYMBOLS];
        let (left_length, length) = (vocabulary.token_length(left) as usize, vocabulary.token_length(id) as usize);
        if left == right {
            positions.sort_unstable(); // runs are merged from the left
        }
        for &at in positions.iter() {
            if self.cells[at] != left || self.cells[at + left_length] != right {
                continue;
            }
            let last = at + length - 1;
            self.cells[at + left_length] = DEAD;
            self.cells[at] = id;
            self.cells[last] = id;
            let (before, after) = (self.cells[at - 1], self.cells[last + 1]);
            if before != BORDER {
                self.enqueue(vocabulary, at - vocabulary.token_length(before) as usize, before, id, n_slots);
            }
            if after != BORDER {
                self.enqueue(vocabulary, at, id, after, n_slots);
            }
        }
    }

    fn enqueue(&mut self, vocabulary: &Vocabulary, at: usize, left: u32, right: u32, n_slots: &mut u32) {
        let id = vocabulary.merged(left, right);
        if id == ABSENT {
            return;
        }
        let rank = id - N_SYMBOLS as u32;
        let mut slot = self.slots.get(0, rank);
        if slot == ABSENT {
            slot = *n_slots;
            *n_slots += 1;
            self.slots.insert(0, rank, slot);
            self.order.push(Reverse((rank, slot)));
            if self.waiting.len() < *n_slots as usize {
                self.waiting.push(Vec::new());
            }
        }
        self.waiting[slot as usize].push(at);
    }
}
