//! Byte-pair training in generations.
//!
//! A generation packs the corpus, counts all pairs, and lists the positions of those at least as frequent as a threshold: a fifth of
//! the most frequent. Pairs are then merged from a lazy heap ordered by (count, then smallest pair) until the best falls below the
//! threshold. This is exact because the count of a pair never grows after the merge that made its younger token, so a pair that was not
//! listed cannot rise above the threshold. The order itself is that of Sennrich et al. 2016 (arXiv 1508.07909, algorithm 1).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::hash::{ABSENT, PairMap};
use crate::index::Frequent;
use crate::segments::Segments;
use crate::shard::{Cell, MAX_CELLS, Shard};
use crate::tally::Tally;
use crate::vocabulary::{MAX_MERGES, N_SYMBOLS};

const THRESHOLD: u64 = 5; // a generation ends when the best pair is this many times rarer than at its start
const HEAVY: usize = 1 << 16; // positions from which a merge is shared among threads
const TICK: Duration = Duration::from_millis(50);

/// What training has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Merges found.
    pub n_done: usize,
    /// Merges asked for.
    pub n_merges: usize,
}

/// Merges in order; merge `i` makes id `256 + i`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trained {
    /// The two ids that each merge joins.
    pub pairs: Vec<(u32, u32)>,
    /// Weighted occurrences, overlapping ones included, at the time of the merge.
    pub counts: Vec<u64>,
}

/// Finds up to `n_merges` merges, fewer where no pair is left. Sequences count `weights` times each (once without).
///
/// `keep_going` is called about twenty times a second, and before every generation, on the calling thread.
pub fn train(
    segments: &Segments<'_, u8>,
    weights: Option<&[u64]>,
    n_merges: usize,
    n_threads: usize,
    keep_going: &mut dyn FnMut(Progress) -> bool,
) -> Result<Trained, Error> {
    check_weights(segments, weights)?;
    if n_merges > MAX_MERGES {
        return Err(Error::TooManyMerges { n_merges, limit: MAX_MERGES });
    }
    let n_merges = n_merges.min(segments.values().len()); // every merge takes away at least one token
    let ranges = split(segments, n_threads)?;
    let lowest = segments.values().iter().copied().min().unwrap_or(0);
    let highest = segments.values().iter().copied().max().unwrap_or(0);
    let alphabet = Alphabet { lowest, n: usize::from(highest - lowest) + 1 };
    if alphabet.n + n_merges + 2 < u16::MAX as usize {
        Training::<u16>::new(segments, weights, n_merges, alphabet, &ranges).run(keep_going)
    } else {
        Training::<u32>::new(segments, weights, n_merges, alphabet, &ranges).run(keep_going)
    }
}

fn check_weights(segments: &Segments<'_, u8>, weights: Option<&[u64]>) -> Result<(), Error> {
    let Some(weights) = weights else { return Ok(()) };
    if weights.len() != segments.len() {
        return Err(Error::WeightsLength { n_weights: weights.len(), n_segments: segments.len() });
    }
    let mut total = 0u64;
    for (segment, &weight) in weights.iter().enumerate() {
        let length = segments.get(segment).len() as u64;
        total = weight.checked_mul(length).and_then(|product| total.checked_add(product)).ok_or(Error::WeightsOverflow { segment })?;
    }
    Ok(())
}

/// Ranges of sequences of about equal length, one per thread, none too large for its positions.
fn split(segments: &Segments<'_, u8>, n_threads: usize) -> Result<Vec<(usize, usize)>, Error> {
    let n_cells = |first: usize, last: usize| segments.start(last) - segments.start(first) + (last - first) + 1;
    if let Some(segment) = (0..segments.len()).find(|&i| n_cells(i, i + 1) > MAX_CELLS) {
        return Err(Error::SegmentTooLong { segment, length: segments.get(segment).len(), limit: MAX_CELLS });
    }
    let share = n_cells(0, segments.len()).div_ceil(n_threads.max(1)).min(MAX_CELLS);
    let mut ranges = Vec::new();
    let mut first = 0;
    for i in 0..segments.len() {
        let full = n_cells(first, i + 1) >= share || (i + 1 < segments.len() && n_cells(first, i + 2) > MAX_CELLS);
        if full || i + 1 == segments.len() {
            ranges.push((first, i + 1));
            first = i + 1;
        }
    }
    Ok(ranges)
}

/// Within training the symbols in use are ids 0 to n - 1 and merges follow at once: tables of pairs stay small, and the order is the same.
#[derive(Debug, Clone, Copy)]
struct Alphabet {
    lowest: u8,
    n: usize,
}

impl Alphabet {
    fn public(self, id: u32) -> u32 {
        if (id as usize) < self.n { id + u32::from(self.lowest) } else { id - self.n as u32 + N_SYMBOLS as u32 }
    }
}

type Candidate = (u64, Reverse<(u32, u32)>, u32); // count, pair, slot: the heap's best is the most frequent, then the smallest pair

struct Training<C> {
    alphabet: Alphabet,
    shards: Vec<Shard<C>>,
    n_merges: usize,
    n_ids: usize,     // ids that exist by now
    spans: Vec<u32>,  // cells of each id in this generation
    counts: Vec<u64>, // per slot
    slots: PairMap,
    heap: BinaryHeap<Candidate>,
    least: u64, // pairs with fewer occurrences are not listed
    weighted: bool,
    left: Around,
    right: Around,
    place: Vec<u32>, // scratch of `occurrences`
    trained: Trained,
}

/// Neighbours of the last merge over all shards.
#[derive(Default)]
struct Around {
    total: Vec<u64>,
    seen: Vec<u32>,
}

impl Around {
    fn add(&mut self, neighbour: u32, weight: u64) {
        let total = &mut self.total[neighbour as usize];
        if *total == 0 {
            self.seen.push(neighbour);
        }
        *total += weight;
    }
}

impl<C: Cell> Training<C> {
    fn new(segments: &Segments<'_, u8>, weights: Option<&[u64]>, n_merges: usize, alphabet: Alphabet, ranges: &[(usize, usize)]) -> Self {
        let border = alphabet.n + n_merges;
        debug_assert!(border + 1 < C::MAX);
        let make = |range| Shard::new(segments, weights, range, alphabet.lowest, border as u32);
        let shards = if ranges.len() > 1 {
            thread::scope(|scope| {
                let threads: Vec<_> = ranges.iter().map(|&range| scope.spawn(move || make(range))).collect();
                threads.into_iter().map(joined).collect()
            })
        } else {
            ranges.iter().map(|&range| make(range)).collect()
        };
        let around = || Around { total: vec![0; border], seen: Vec::new() };
        Self {
            alphabet,
            shards,
            n_merges,
            n_ids: alphabet.n,
            spans: vec![1; border + 2],
            counts: Vec::new(),
            slots: PairMap::with_capacity(1024),
            heap: BinaryHeap::new(),
            least: 0,
            weighted: weights.is_some(),
            left: around(),
            right: around(),
            place: vec![0; border],
            trained: Trained::default(),
        }
    }

    fn run(mut self, keep_going: &mut dyn FnMut(Progress) -> bool) -> Result<Trained, Error> {
        let mut last = Instant::now();
        while self.trained.pairs.len() < self.n_merges {
            if !keep_going(self.progress()) {
                return Err(Error::Interrupted);
            }
            if !self.start_generation() {
                break;
            }
            let mut room = true;
            while room && self.trained.pairs.len() < self.n_merges {
                let Some((count, pair, slot)) = self.best() else { break };
                room = self.merge(pair, slot);
                self.trained.pairs.push((self.alphabet.public(pair.0), self.alphabet.public(pair.1)));
                self.trained.counts.push(count);
                if last.elapsed() > TICK {
                    last = Instant::now();
                    if !keep_going(self.progress()) {
                        return Err(Error::Interrupted);
                    }
                }
            }
        }
        keep_going(self.progress());
        Ok(self.trained)
    }

    fn progress(&self) -> Progress {
        Progress { n_done: self.trained.pairs.len(), n_merges: self.n_merges }
    }

    /// Packs, counts, lists; false where no pair is left.
    fn start_generation(&mut self) -> bool {
        let (spans, n_ids) = (&self.spans, self.n_ids);
        let n_cells: usize = self.shards.iter().map(Shard::n_cells).sum();
        let by_table = !self.weighted && n_ids * n_ids * self.shards.len() <= n_cells;
        let packed = self.spans[..n_ids].iter().all(|&span| span == 1);
        on_all(&mut self.shards, true, |shard| {
            if !packed {
                shard.pack(spans);
            }
            if by_table { shard.fill_table(n_ids) } else { shard.sort_by_left(n_ids) }
        });
        self.spans[..n_ids].fill(1);
        let mut frequent = if by_table { self.pairs_of_tables() } else { self.pairs_by_left() };
        let Some(best) = frequent.iter().map(|pair| pair.count).max() else { return false };
        self.least = self.threshold(&mut frequent, best);
        frequent.retain(|pair| pair.count >= self.least);
        frequent.sort_unstable_by_key(|pair| (pair.pair.0, Reverse(pair.n), pair.pair.1));
        on_all(&mut self.shards, true, |shard| if by_table { shard.list_by_table(&frequent, n_ids) } else { shard.list_by_left(&frequent) });
        self.counts.clear();
        self.slots.clear();
        self.heap.clear();
        for pair in frequent {
            self.push(pair.pair, pair.count);
        }
        true
    }

    fn push(&mut self, pair: (u32, u32), count: u64) {
        let slot = self.counts.len() as u32;
        self.counts.push(count);
        self.slots.insert(pair.0, pair.1, slot);
        self.heap.push((count, Reverse(pair), slot));
    }

    /// All pairs whose count may reach the threshold, from the sum of the tables.
    fn pairs_of_tables(&self) -> Vec<Frequent> {
        let n_ids = self.n_ids;
        let total = |cell: usize| self.shards.iter().map(|shard| u64::from(shard.table()[cell])).sum::<u64>();
        let mut frequent = Vec::new();
        let mut least = 1;
        for cell in 0..n_ids * n_ids {
            let count = total(cell);
            if count >= least {
                least = least.max(count / THRESHOLD);
                frequent.push(Frequent { pair: ((cell / n_ids) as u32, (cell % n_ids) as u32), count, n: count });
            }
        }
        frequent
    }

    /// All pairs whose count may reach the threshold, from the positions sorted by left token.
    fn pairs_by_left(&self) -> Vec<Frequent> {
        let mut lefts: Vec<(u32, usize)> = (0..self.n_ids as u32).map(|left| (left, self.shards.iter().map(|shard| shard.n_with_left(left)).sum())).collect();
        lefts.retain(|left| left.1 > 0);
        lefts.sort_unstable_by_key(|&(left, n)| (Reverse(n), left));
        let n_threads = self.shards.len().max(1);
        let count = |offset: usize| {
            let mut tally = Tally::new(self.spans.len(), self.weighted);
            let mut frequent: Vec<Frequent> = Vec::new();
            let mut least = 1;
            for &(left, n) in lefts.iter().skip(offset).step_by(n_threads) {
                if !self.weighted && (n as u64) < least {
                    break;
                }
                for shard in &self.shards {
                    shard.tally_right(left, &mut tally);
                }
                tally.take(|right, n, count| {
                    least = least.max(count / THRESHOLD);
                    if count >= least {
                        frequent.push(Frequent { pair: (left, right), count, n: u64::from(n) });
                    }
                });
            }
            frequent
        };
        if n_threads == 1 {
            return count(0);
        }
        thread::scope(|scope| {
            let count = &count;
            let threads: Vec<_> = (0..n_threads).map(|offset| scope.spawn(move || count(offset))).collect();
            threads.into_iter().flat_map(joined).collect()
        })
    }

    /// A fifth of the best count, or more where the lists would take more than 5/8 of their room.
    fn threshold(&self, frequent: &mut [Frequent], best: u64) -> u64 {
        let least = (best / THRESHOLD).max(1);
        let room = self.shards.iter().map(|shard| shard.room() as u64).sum::<u64>() / 8 * 5;
        frequent.sort_unstable_by_key(|pair| Reverse(pair.count));
        let mut listed = 0;
        for pair in frequent.iter() {
            listed += pair.n;
            if pair.count < least {
                return least;
            }
            if listed > room {
                return if pair.count == best { best } else { pair.count + 1 };
            }
        }
        least
    }

    /// Takes the most frequent pair off the heap, unless it is below the threshold.
    fn best(&mut self) -> Option<(u64, (u32, u32), u32)> {
        while let Some((count, Reverse(pair), slot)) = self.heap.pop() {
            let current = self.counts[slot as usize];
            if current == count {
                return Some((count, pair, slot));
            }
            if current >= self.least {
                self.heap.push((current, Reverse(pair), slot));
            }
        }
        None
    }

    /// Merges a pair everywhere and brings the counts around it up to date; false where the lists of new pairs found no room.
    fn merge(&mut self, pair: (u32, u32), slot: u32) -> bool {
        let id = self.n_ids as u32;
        self.n_ids += 1;
        self.spans[id as usize] = self.spans[pair.0 as usize] + self.spans[pair.1 as usize];
        let spans = &self.spans;
        let heavy = self.shards.iter().map(|shard| shard.n_listed(slot)).sum::<usize>() > HEAVY;
        on_all(&mut self.shards, heavy, |shard| shard.merge(slot, pair, id, spans));
        let mut twice = 0;
        for shard in &self.shards {
            shard.around.left.iter().for_each(|&(neighbour, _, weight)| self.left.add(neighbour, weight));
            shard.around.right.iter().for_each(|&(neighbour, _, weight)| self.right.add(neighbour, weight));
            twice += shard.around.twice.1;
        }
        self.counts[slot as usize] = 0;
        self.lower((pair.1, pair.0), twice, slot);
        let mut lefts = Vec::new();
        let mut rights = Vec::new();
        for neighbour in std::mem::take(&mut self.left.seen) {
            let total = std::mem::take(&mut self.left.total[neighbour as usize]);
            self.lower((neighbour, pair.0), total, slot);
            if total >= self.least {
                lefts.push((neighbour, total));
            }
        }
        for neighbour in std::mem::take(&mut self.right.seen) {
            let total = std::mem::take(&mut self.right.total[neighbour as usize]);
            self.lower((pair.1, neighbour), total, slot);
            if total >= self.least {
                rights.push((neighbour, total));
            }
        }
        if twice >= self.least {
            lefts.push((id, twice));
        }
        self.list(&lefts, &rights, id, heavy)
    }

    fn lower(&mut self, (left, right): (u32, u32), by: u64, merged: u32) {
        if by > 0 {
            let slot = self.slots.get(left, right);
            if slot != ABSENT && slot != merged {
                self.counts[slot as usize] -= by;
            }
        }
    }

    /// Gives the frequent pairs of the new token their slots and lists.
    fn list(&mut self, lefts: &[(u32, u64)], rights: &[(u32, u64)], id: u32, heavy: bool) -> bool {
        if lefts.is_empty() && rights.is_empty() {
            return true;
        }
        let place = &mut self.place;
        let wanted: Vec<_> = self
            .shards
            .iter()
            .map(|shard| {
                let mut here = (occurrences(lefts, &shard.around.left, place), occurrences(rights, &shard.around.right, place));
                if let Some(last) = here.0.last_mut().filter(|last| last.0 == id) {
                    last.1 = shard.around.twice.0;
                }
                here
            })
            .collect();
        let fits = self.shards.iter().zip(&wanted).all(|(shard, (lefts, rights))| shard.has_room(lefts.iter().chain(rights).map(|x| x.1 as usize).sum()));
        if !fits {
            return false;
        }
        let spans = &self.spans;
        on_all_with(&mut self.shards, &wanted, heavy, |shard, (lefts, rights)| shard.list(lefts, rights, id, spans));
        for &(neighbour, count) in lefts {
            self.push((neighbour, id), count);
        }
        for &(neighbour, count) in rights {
            self.push((id, neighbour), count);
        }
        true
    }
}

/// How often each wanted neighbour occurs in one shard; `place` is all zero before and after.
fn occurrences(wanted: &[(u32, u64)], here: &[(u32, u32, u64)], place: &mut [u32]) -> Vec<(u32, u32)> {
    for (i, &(neighbour, _)) in (1..).zip(wanted) {
        place[neighbour as usize] = i;
    }
    let mut out: Vec<(u32, u32)> = wanted.iter().map(|&(neighbour, _)| (neighbour, 0)).collect();
    for &(neighbour, n, _) in here {
        if let Some(i) = place[neighbour as usize].checked_sub(1) {
            out[i as usize].1 = n;
        }
    }
    for &(neighbour, _) in wanted {
        place[neighbour as usize] = 0;
    }
    out
}

/// Does `work` on every shard, each on a thread of its own where that pays.
fn on_all<C: Cell>(shards: &mut [Shard<C>], heavy: bool, work: impl Fn(&mut Shard<C>) + Sync) {
    let nothing = vec![(); shards.len()];
    on_all_with(shards, &nothing, heavy, |shard, ()| work(shard));
}

fn on_all_with<C: Cell, T: Sync>(shards: &mut [Shard<C>], with: &[T], heavy: bool, work: impl Fn(&mut Shard<C>, &T) + Sync) {
    if heavy && shards.len() > 1 {
        thread::scope(|scope| {
            let work = &work;
            for (shard, with) in shards.iter_mut().zip(with) {
                scope.spawn(move || work(shard, with));
            }
        });
    } else {
        shards.iter_mut().zip(with).for_each(|(shard, with)| work(shard, with));
    }
}

/// The result of a thread; its panic goes on in the caller.
fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
