//! A part of the training corpus: its tokens, and where the frequent pairs stand.
//!
//! Within a generation a token of n cells keeps its id in its first and its last cell, so both neighbours of a pair are found without
//! links; the first cell of a swallowed token is marked dead, so that an outdated position is seen. Between generations the corpus is
//! packed to one cell per token.

use crate::segments::Segments;
use crate::tally::{Tally, Weights};

/// Holds an id in two or four bytes.
pub(crate) trait Cell: Copy + Eq + Send + Sync {
    /// Largest id that fits.
    const MAX: usize;
    fn new(id: u32) -> Self;
    fn id(self) -> u32;
}

impl Cell for u16 {
    const MAX: usize = u16::MAX as usize;
    #[inline]
    fn new(id: u32) -> Self {
        id as Self
    }
    #[inline]
    fn id(self) -> u32 {
        u32::from(self)
    }
}

impl Cell for u32 {
    const MAX: usize = u32::MAX as usize;
    #[inline]
    fn new(id: u32) -> Self {
        id
    }
    #[inline]
    fn id(self) -> u32 {
        self
    }
}

/// Most cells of one shard, so that positions and places in its lists fit 32 bits.
pub(crate) const MAX_CELLS: usize = 1 << 31;
/// No list is kept for this neighbour.
pub(crate) const NOWHERE: u32 = u32::MAX;
/// Bytes of cells and lists per symbol; with the symbol itself and the segment's offset this stays below ten.
const BYTES_PER_SYMBOL: f64 = 8.5;
/// Positions looked at before the first of them is merged: what they read is then in the L1 cache.
const AHEAD: usize = 64;

/// What one merge did around the places where it happened: (neighbour, occurrences, weight).
#[derive(Debug, Default)]
pub(crate) struct Around {
    /// Left neighbours other than the new token.
    pub(crate) left: Vec<(u32, u32, u64)>,
    /// Right neighbours other than the new token.
    pub(crate) right: Vec<(u32, u32, u64)>,
    /// New token beside new token: occurrences, weight.
    pub(crate) twice: (u32, u64),
}

#[derive(Debug)]
pub(crate) struct Shard<C> {
    pub(super) cells: Vec<C>,   // a border, sequence, border, ..., sequence, border
    pub(super) lists: Vec<u32>, // positions, `used` of them in use; the rest of the memory is not touched
    pub(super) used: usize,
    pub(super) places: Vec<(u32, u32)>, // per slot: start in `lists`, length
    pub(super) starts: Vec<u32>,        // of the positions sorted by left id
    pub(super) table: Vec<u32>,         // occurrences of every pair, while there are few ids
    pub(super) border: u32,
    pub(super) weights: Weights,
    pub(super) right_at: Vec<u32>,
    left_at: Vec<u32>,
    left: Tally,
    right: Tally,
    hits: (usize, usize), // in `lists`: positions of the last merge
    pub(crate) around: Around,
}

impl<C: Cell> Shard<C> {
    /// Takes sequences `first..last`, symbols less `lowest` as ids; all ids stay below `border`.
    pub(crate) fn new(segments: &Segments<'_, u8>, weights: Option<&[u64]>, (first, last): (usize, usize), lowest: u8, border: u32) -> Self {
        let weight = |i: usize| weights.map_or(1, |weights| weights[i]);
        let chosen = || (first..last).filter(|&i| segments.get(i).len() > 1 && weight(i) > 0);
        let mut cells = Vec::with_capacity(1 + chosen().map(|i| segments.get(i).len() + 1).sum::<usize>());
        let mut kept = Weights::default();
        cells.push(C::new(border));
        for i in chosen() {
            cells.extend(segments.get(i).iter().map(|&symbol| C::new(u32::from(symbol - lowest))));
            if weights.is_some() {
                kept.ends.push(cells.len() as u32);
                kept.weights.push(weight(i));
            }
            cells.push(C::new(border));
        }
        let n_ids = border as usize + 2;
        let room = (cells.len() as f64 * (BYTES_PER_SYMBOL - size_of::<C>() as f64) / size_of::<u32>() as f64) as usize;
        Self {
            lists: vec![0; room.min(u32::MAX as usize - 1) + 4096],
            used: 0,
            places: Vec::new(),
            starts: Vec::new(),
            table: Vec::new(),
            border,
            right_at: vec![NOWHERE; n_ids],
            left_at: vec![NOWHERE; n_ids],
            left: Tally::new(n_ids, weights.is_some()),
            right: Tally::new(n_ids, weights.is_some()),
            hits: (0, 0),
            around: Around::default(),
            weights: kept,
            cells,
        }
    }

    pub(crate) fn n_cells(&self) -> usize {
        self.cells.len()
    }

    /// Positions that the lists of one generation may hold.
    pub(crate) fn room(&self) -> usize {
        self.lists.len() - 1
    }

    /// One cell per token; `spans` holds the cells of each id.
    pub(crate) fn pack(&mut self, spans: &[u32]) {
        let (mut from, mut to, mut sequence) = (0, 0, 0);
        let border = C::new(self.border);
        while from < self.cells.len() {
            let cell = self.cells[from];
            self.cells[to] = cell;
            if cell == border && from > 0 && !self.weights.ends.is_empty() {
                self.weights.ends[sequence] = to as u32;
                sequence += 1;
            }
            from += spans[cell.id() as usize] as usize;
            to += 1;
        }
        self.cells.truncate(to);
    }

    /// Positions listed for a pair, outdated ones included.
    pub(crate) fn n_listed(&self, slot: u32) -> usize {
        self.places[slot as usize].1 as usize
    }

    /// Merges every listed occurrence of `pair` to `id`, from the left; fills `around`.
    pub(crate) fn merge(&mut self, slot: u32, pair: (u32, u32), id: u32, spans: &[u32]) {
        if self.weights.ends.is_empty() {
            self.merge_as::<false>(slot, pair, id, spans)
        } else {
            self.merge_as::<true>(slot, pair, id, spans)
        }
        let Self { left, right, around, .. } = self;
        // Of two merged occurrences side by side, the first saw the left part of the second as its right neighbour.
        around.twice = left.take_one(id);
        if around.twice.0 > 0 {
            right.subtract(pair.0, around.twice);
        }
        for (tally, list) in [(left, &mut around.left), (right, &mut around.right)] {
            list.clear();
            tally.take(|neighbour, n, weight| {
                if neighbour != self.border {
                    list.push((neighbour, n, weight));
                }
            });
        }
    }

    fn merge_as<const WEIGHTED: bool>(&mut self, slot: u32, pair: (u32, u32), id: u32, spans: &[u32]) {
        let (a, b, new, dead) = (C::new(pair.0), C::new(pair.1), C::new(id), C::new(self.border + 1));
        let (span_a, span_b) = (spans[pair.0 as usize] as usize, spans[pair.1 as usize] as usize);
        let (start, n) = self.places[slot as usize];
        let (start, end) = (start as usize, (start + n) as usize);
        let ahead = if a == b { 1 } else { AHEAD }; // occurrences of two unlike tokens cannot overlap: they may be checked beforehand
        let (mut hit, mut sequence) = (start, 0);
        let cells = &mut self.cells[..];
        for from in (start..end).step_by(ahead) {
            let first = hit;
            for i in from..(from + ahead).min(end) {
                let at = self.lists[i];
                self.lists[hit] = at;
                hit += usize::from((cells[at as usize] == a) & (cells[at as usize + span_a] == b));
            }
            for &at in &self.lists[first..hit] {
                let at = at as usize;
                let second = at + span_a;
                let last = second + span_b - 1;
                let (before, after) = (cells[at - 1], cells[last + 1]);
                cells[at] = new;
                cells[second] = dead;
                cells[last] = new;
                let weight = self.weights.of::<WEIGHTED>(at, &mut sequence);
                self.left.add::<WEIGHTED>(before.id(), weight);
                self.right.add::<WEIGHTED>(after.id(), weight);
            }
        }
        self.hits = (start, hit);
    }

    /// Whether lists for `n` further positions fit.
    pub(crate) fn has_room(&self, n: usize) -> bool {
        self.used + n <= self.room()
    }

    /// Writes position lists around the last merge, in the order of their slots: pairs (neighbour, id) for `lefts`, then (id, neighbour)
    /// for `rights`; `id` itself among `lefts` stands for (id, id). Each neighbour comes with its occurrences in this shard.
    pub(crate) fn list(&mut self, lefts: &[(u32, u32)], rights: &[(u32, u32)], id: u32, spans: &[u32]) {
        for (neighbours, at) in [(lefts, &mut self.left_at), (rights, &mut self.right_at)] {
            for &(neighbour, n) in neighbours {
                self.places.push((self.used as u32, n));
                at[neighbour as usize] = self.used as u32;
                self.used += n as usize;
            }
        }
        let span = spans[id as usize] as usize;
        for i in self.hits.0..self.hits.1 {
            let position = self.lists[i] as usize;
            let before = self.cells[position - 1].id() as usize;
            let to = self.left_at[before];
            if to != NOWHERE {
                self.lists[to as usize] = (position - spans[before] as usize) as u32;
                self.left_at[before] += 1;
            }
            let after = self.cells[position + span].id() as usize;
            let to = self.right_at[after];
            if to != NOWHERE {
                self.lists[to as usize] = position as u32;
                self.right_at[after] += 1;
            }
        }
        for (neighbours, at) in [(lefts, &mut self.left_at), (rights, &mut self.right_at)] {
            for &(neighbour, _) in neighbours {
                at[neighbour as usize] = NOWHERE;
            }
        }
    }
}
