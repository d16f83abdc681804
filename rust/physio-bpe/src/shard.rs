//! A part of the training corpus: its tokens, and where the frequent pairs stand.
//!
//! Within a generation a token of n cells keeps its id in its first and its last cell, so both neighbours of a pair are found without
//! links; the first cell of a swallowed token is marked dead, so that an outdated position is seen. Between generations the corpus is
//! packed to one cell per token.

use crate::segments::Segments;

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
const NOWHERE: u32 = u32::MAX;

/// How often each id was seen: occurrences, and their weight where sequences are weighted.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    n: Vec<u32>,
    weight: Vec<u64>,
    seen: Vec<u32>,
}

impl Tally {
    pub(crate) fn new(n_ids: usize, weighted: bool) -> Self {
        Self { n: vec![0; n_ids], weight: vec![0; if weighted { n_ids } else { 0 }], seen: Vec::new() }
    }

    #[inline]
    fn add<const WEIGHTED: bool>(&mut self, id: u32, weight: u64) {
        let n = &mut self.n[id as usize];
        if *n == 0 {
            self.seen.push(id);
        }
        *n += 1;
        if WEIGHTED {
            self.weight[id as usize] += weight;
        }
    }

    #[inline]
    fn remove<const WEIGHTED: bool>(&mut self, id: u32, weight: u64) {
        self.n[id as usize] -= 1;
        if WEIGHTED {
            self.weight[id as usize] -= weight;
        }
    }

    /// Every id seen with its count, once. An id whose count fell to 0 and rose again is listed twice in `seen`: `take` clears as it goes.
    pub(crate) fn take(&mut self, mut each: impl FnMut(u32, u64, u32)) {
        for &id in &self.seen {
            let n = std::mem::take(&mut self.n[id as usize]);
            if n > 0 {
                let weight = self.weight.get_mut(id as usize).map_or(u64::from(n), std::mem::take);
                each(id, weight, n);
            }
        }
        self.seen.clear();
    }
}

/// Weight of each sequence, found by position.
#[derive(Debug, Default)]
struct Weights {
    ends: Vec<u32>, // position of the border after each sequence
    weights: Vec<u64>,
}

impl Weights {
    /// Positions mostly ascend: `at` remembers the sequence found last.
    #[inline]
    fn of<const WEIGHTED: bool>(&self, position: usize, at: &mut usize) -> u64 {
        if !WEIGHTED {
            return 1;
        }
        let before = if *at == 0 { 0 } else { self.ends[*at - 1] };
        if position as u32 > self.ends[*at] || (position as u32) < before {
            *at = self.ends.partition_point(|&end| end < position as u32);
        }
        self.weights[*at]
    }
}

/// A pair that is frequent enough to be listed in this generation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frequent {
    pub(crate) pair: (u32, u32),
    pub(crate) count: u64,
    pub(crate) n: u64,
}

/// What one merge did around the places where it happened.
#[derive(Debug, Default)]
pub(crate) struct Around {
    /// Left neighbours other than the new token.
    pub(crate) left: Vec<(u32, u64, u32)>,
    /// Right neighbours other than the new token.
    pub(crate) right: Vec<(u32, u64, u32)>,
    /// New token beside new token: weight and occurrences.
    pub(crate) twice: (u64, u32),
}

#[derive(Debug)]
pub(crate) struct Shard<C> {
    cells: Vec<C>, // a border, sequence, border, ..., sequence, border
    lists: Vec<u32>,
    limit: usize,            // most positions in `lists`
    places: Vec<(u32, u32)>, // per slot: start in `lists`, length
    hits: (usize, usize),
    starts: Vec<u32>, // per left id, of the positions sorted by it
    left: Tally,
    right: Tally,
    left_at: Vec<u32>,
    right_at: Vec<u32>,
    pub(crate) around: Around,
    weights: Weights,
    border: u32,
}

impl<C: Cell> Shard<C> {
    /// Takes sequences `first..last`; ids stay below `border`.
    pub(crate) fn new(segments: &Segments<'_, u8>, weights: Option<&[u64]>, (first, last): (usize, usize), border: u32) -> Self {
        let weight = |i: usize| weights.map_or(1, |weights| weights[i]);
        let chosen = || (first..last).filter(|&i| segments.get(i).len() > 1 && weight(i) > 0);
        let mut cells = Vec::with_capacity(1 + chosen().map(|i| segments.get(i).len() + 1).sum::<usize>());
        let mut kept = Weights::default();
        cells.push(C::new(border));
        for i in chosen() {
            cells.extend(segments.get(i).iter().map(|&symbol| C::new(u32::from(symbol))));
            if weights.is_some() {
                kept.ends.push(cells.len() as u32);
                kept.weights.push(weight(i));
            }
            cells.push(C::new(border));
        }
        let n_ids = border as usize + 2;
        let limit = cells.len() + 4096;
        let tally = || Tally::new(n_ids, weights.is_some());
        Self {
            cells,
            lists: Vec::with_capacity(limit),
            limit,
            places: Vec::new(),
            hits: (0, 0),
            starts: Vec::new(),
            left: tally(),
            right: tally(),
            left_at: vec![NOWHERE; n_ids],
            right_at: vec![NOWHERE; n_ids],
            around: Around::default(),
            weights: kept,
            border,
        }
    }

    /// Positions that the lists of one generation may hold.
    pub(crate) fn limit(&self) -> usize {
        self.limit
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
        self.lists.clear();
        self.lists.resize(self.starts[n_ids] as usize, 0);
        let mut at = self.starts.clone();
        for (position, pair) in self.cells.windows(2).enumerate() {
            let left = pair[0].id();
            if left != border && pair[1].id() != border {
                let at = &mut at[left as usize];
                self.lists[*at as usize] = position as u32;
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
    pub(crate) fn keep(&mut self, frequent: &[Frequent]) {
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
        self.lists.truncate(kept);
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
        let border = self.border;
        let Self { left, right, around, .. } = self;
        for (tally, list) in [(left, &mut around.left), (right, &mut around.right)] {
            list.clear();
            tally.take(|neighbour, weight, n| {
                if neighbour != border {
                    list.push((neighbour, weight, n));
                }
            });
        }
    }

    fn merge_as<const WEIGHTED: bool>(&mut self, slot: u32, pair: (u32, u32), id: u32, spans: &[u32]) {
        let (a, b, new, dead) = (C::new(pair.0), C::new(pair.1), C::new(id), C::new(self.border + 1));
        let (span_a, span_b) = (spans[pair.0 as usize] as usize, spans[pair.1 as usize] as usize);
        let (start, n) = self.places[slot as usize];
        let (start, end) = (start as usize, (start + n) as usize);
        let mut hit = start;
        let mut sequence = 0;
        let mut twice = (0, 0);
        let cells = &mut self.cells[..];
        for i in start..end {
            let at = self.lists[i] as usize;
            let second = at + span_a;
            if cells[at] != a || cells[second] != b {
                continue;
            }
            let last = second + span_b - 1;
            let (before, after) = (cells[at - 1], cells[last + 1]);
            cells[at] = new;
            cells[second] = dead;
            cells[last] = new;
            self.lists[hit] = at as u32;
            hit += 1;
            let weight = self.weights.of::<WEIGHTED>(at, &mut sequence);
            self.right.add::<WEIGHTED>(after.id(), weight);
            if before == new {
                self.right.remove::<WEIGHTED>(pair.0, weight); // the merge before this one saw the left part of this one as its neighbour
                twice.0 += weight;
                twice.1 += 1;
            } else {
                self.left.add::<WEIGHTED>(before.id(), weight);
            }
        }
        self.hits = (start, hit);
        self.around.twice = twice;
    }

    /// Whether lists for `n` further positions fit.
    pub(crate) fn has_room(&self, n: usize) -> bool {
        self.lists.len() + n <= self.limit
    }

    /// Writes position lists around the last merge, in the order of their slots: pairs (neighbour, id) for `lefts`, then (id, neighbour)
    /// for `rights`; `id` itself among `lefts` stands for (id, id). Each neighbour comes with its occurrences in this shard.
    pub(crate) fn list(&mut self, lefts: &[(u32, u32)], rights: &[(u32, u32)], id: u32, spans: &[u32]) {
        for (neighbours, at) in [(lefts, &mut self.left_at), (rights, &mut self.right_at)] {
            for &(neighbour, n) in neighbours {
                let start = self.lists.len();
                self.places.push((start as u32, n));
                at[neighbour as usize] = start as u32;
                self.lists.resize(start + n as usize, 0);
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
