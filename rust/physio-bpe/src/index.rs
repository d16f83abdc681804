//! Start of a generation: how often every pair occurs in a shard, and position lists of the frequent ones.
//!
//! Two ways. While there are few ids, a square table of all pairs is filled in one sweep and a second sweep writes the lists. Otherwise
//! positions are sorted by their left token, and the right tokens of one left token are counted at a time.

use crate::shard::{Cell, NOWHERE, Shard};
use crate::tally::Tally;

/// A pair that is frequent enough to be listed in this generation: its weighted count, and its occurrences.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frequent {
    pub(crate) pair: (u32, u32),
    pub(crate) count: u64,
    pub(crate) n: u64,
}

impl<C: Cell> Shard<C> {
    /// Fills the table: occurrences of (left, right) at `left * n_ids + right`.
    pub(crate) fn fill_table(&mut self, n_ids: usize) {
        self.table.clear();
        self.table.resize(n_ids * n_ids, 0);
        let border = self.border;
        let mut left = border;
        for cell in &self.cells {
            let right = cell.id();
            if left != border && right != border {
                self.table[left as usize * n_ids + right as usize] += 1;
            }
            left = right;
        }
    }

    /// The table, as [`Self::fill_table`] left it.
    pub(crate) fn table(&self) -> &[u32] {
        &self.table
    }

    /// Lists the positions of the frequent pairs, turning the table from counts to places to write at.
    pub(crate) fn list_by_table(&mut self, frequent: &[Frequent], n_ids: usize) {
        let cell = |pair: (u32, u32)| pair.0 as usize * n_ids + pair.1 as usize;
        self.places.clear();
        self.used = 0;
        for frequent in frequent {
            let n = self.table[cell(frequent.pair)];
            self.places.push((self.used as u32, n));
            self.used += n as usize;
        }
        let nowhere = self.used as u32; // one past the lists: written to for every other pair, never read
        self.table.fill(nowhere);
        for (frequent, place) in frequent.iter().zip(&self.places) {
            self.table[cell(frequent.pair)] = if place.1 > 0 { place.0 } else { nowhere };
        }
        let border = self.border;
        let mut left = border;
        for (position, cell) in (0u32..).zip(&self.cells) {
            let right = cell.id();
            if left != border && right != border {
                let to = &mut self.table[left as usize * n_ids + right as usize];
                self.lists[*to as usize] = position - 1;
                *to += u32::from(*to != nowhere);
            }
            left = right;
        }
        self.table = Vec::new();
    }

    /// Sorts the positions of all pairs by their left token, ascending within it.
    pub(crate) fn sort_by_left(&mut self, n_ids: usize) {
        let border = self.border;
        self.starts.clear();
        self.starts.resize(n_ids + 1, 0);
        for pair in self.cells.windows(2) {
            let left = pair[0].id();
            if left != border && pair[1].id() != border {
                self.starts[left as usize + 1] += 1;
            }
        }
        for id in 0..n_ids {
            self.starts[id + 1] += self.starts[id];
        }
        let mut at = self.starts.clone();
        for (position, pair) in (0u32..).zip(self.cells.windows(2)) {
            let left = pair[0].id();
            if left != border && pair[1].id() != border {
                let at = &mut at[left as usize];
                self.lists[*at as usize] = position;
                *at += 1;
            }
        }
    }

    /// Number of pairs with this left token.
    pub(crate) fn n_with_left(&self, left: u32) -> usize {
        (self.starts[left as usize + 1] - self.starts[left as usize]) as usize
    }

    /// Adds the right tokens of all pairs with this left token.
    pub(crate) fn tally_right(&self, left: u32, tally: &mut Tally) {
        if self.weights.ends.is_empty() { self.tally_right_as::<false>(left, tally) } else { self.tally_right_as::<true>(left, tally) }
    }

    fn tally_right_as<const WEIGHTED: bool>(&self, left: u32, tally: &mut Tally) {
        let mut sequence = 0;
        for &position in &self.lists[self.starts[left as usize] as usize..self.starts[left as usize + 1] as usize] {
            let weight = self.weights.of::<WEIGHTED>(position as usize, &mut sequence);
            tally.add::<WEIGHTED>(self.cells[position as usize + 1].id(), weight);
        }
    }

    /// Keeps, of the positions sorted by left token, those of the frequent pairs, one list per pair; `frequent` ascends by left token.
    pub(crate) fn list_by_left(&mut self, frequent: &[Frequent]) {
        self.places.clear();
        let mut rest: Vec<u32> = Vec::new(); // positions of all but the first pair of a left token
        let mut kept = 0;
        for same_left in frequent.chunk_by(|a, b| a.pair.0 == b.pair.0) {
            let left = same_left[0].pair.0 as usize;
            let bucket = self.starts[left] as usize..self.starts[left + 1] as usize;
            for frequent in same_left {
                self.right_at[frequent.pair.1 as usize] = 0;
            }
            for &position in &self.lists[bucket.clone()] {
                let n = &mut self.right_at[self.cells[position as usize + 1].id() as usize];
                *n = n.wrapping_add(u32::from(*n != NOWHERE));
            }
            let first = same_left[0].pair.1;
            let n_first = self.right_at[first as usize];
            self.places.push((kept as u32, n_first));
            let mut n_rest = 0;
            for frequent in &same_left[1..] {
                let n = std::mem::replace(&mut self.right_at[frequent.pair.1 as usize], n_rest);
                self.places.push((kept as u32 + n_first + n_rest, n));
                n_rest += n;
            }
            rest.clear();
            rest.resize(n_rest as usize, 0);
            for i in bucket {
                let position = self.lists[i];
                let right = self.cells[position as usize + 1].id();
                if right == first {
                    self.lists[kept] = position;
                    kept += 1;
                } else if self.right_at[right as usize] != NOWHERE {
                    rest[self.right_at[right as usize] as usize] = position;
                    self.right_at[right as usize] += 1;
                }
            }
            self.lists[kept..kept + rest.len()].copy_from_slice(&rest);
            kept += rest.len();
            for frequent in same_left {
                self.right_at[frequent.pair.1 as usize] = NOWHERE;
            }
        }
        self.used = kept;
    }
}
