//! Slow statements of the rules, to compare with: recount everything, merge by scanning, match by hash maps.
#![allow(dead_code, clippy::unwrap_used, missing_docs)] // each user takes its part

use std::collections::HashMap;
use std::thread;

/// One merge after the other, counting all pairs anew each time, on `n_threads` threads.
pub fn train(sequences: &[&[u8]], weights: &[u64], n_merges: usize, n_threads: usize) -> (Vec<(u32, u32)>, Vec<u64>) {
    let mut ids: Vec<Vec<u32>> = sequences.iter().map(|symbols| symbols.iter().map(|&symbol| u32::from(symbol)).collect()).collect();
    let (mut pairs, mut counts) = (Vec::new(), Vec::new());
    for merge in 0..n_merges {
        let table = count(&ids, weights, 256 + merge, n_threads);
        let Some((&pair, &n)) = table.iter().max_by_key(|&(&pair, &n)| (n, std::cmp::Reverse(pair))) else { break };
        pairs.push(pair);
        counts.push(n);
        ids.iter_mut().for_each(|ids| replace(ids, pair, 256 + merge as u32));
    }
    (pairs, counts)
}

fn count(ids: &[Vec<u32>], weights: &[u64], n_ids: usize, n_threads: usize) -> HashMap<(u32, u32), u64> {
    let part = |from: usize, step: usize| {
        let mut dense = vec![0u64; n_ids * n_ids];
        for (ids, weight) in ids.iter().zip(weights) {
            let n_pairs = ids.len().saturating_sub(1);
            let (first, last) = (n_pairs * from / step, n_pairs * (from + 1) / step);
            for pair in ids[first..(last + 1).min(ids.len())].windows(2) {
                dense[pair[0] as usize * n_ids + pair[1] as usize] += weight;
            }
        }
        dense
    };
    let tables: Vec<Vec<u64>> = if n_threads == 1 {
        vec![part(0, 1)]
    } else {
        thread::scope(|scope| {
            let part = &part;
            let threads: Vec<_> = (0..n_threads).map(|from| scope.spawn(move || part(from, n_threads))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    };
    let mut total = HashMap::new();
    for cell in 0..n_ids * n_ids {
        let n = tables.iter().map(|table| table[cell]).sum();
        if n > 0 {
            total.insert(((cell / n_ids) as u32, (cell % n_ids) as u32), n);
        }
    }
    total
}

fn replace(ids: &mut Vec<u32>, pair: (u32, u32), id: u32) {
    let (mut from, mut to) = (0, 0);
    while from < ids.len() {
        let hit = from + 1 < ids.len() && (ids[from], ids[from + 1]) == pair;
        ids[to] = if hit { id } else { ids[from] };
        from += 1 + usize::from(hit);
        to += 1;
    }
    ids.truncate(to);
}

/// Rank order: every merge in turn, applied from the left.
pub fn encode_rank(pairs: &[(u32, u32)], symbols: &[u8]) -> Vec<u32> {
    let mut ids: Vec<u32> = symbols.iter().map(|&symbol| u32::from(symbol)).collect();
    for (merge, &pair) in pairs.iter().enumerate() {
        replace(&mut ids, pair, 256 + merge as u32);
    }
    ids
}

/// The strings of all tokens.
pub fn strings(pairs: &[(u32, u32)]) -> Vec<Vec<u8>> {
    let mut strings: Vec<Vec<u8>> = (0..=255).map(|symbol| vec![symbol]).collect();
    for &(left, right) in pairs {
        strings.push([strings[left as usize].clone(), strings[right as usize].clone()].concat());
    }
    strings
}

/// A tree of hash maps, as ECG-Byte's encoder builds it.
#[derive(Default)]
pub struct MapTrie {
    children: HashMap<u8, MapTrie>,
    id: Option<u32>,
}

impl MapTrie {
    pub fn new(strings: &[Vec<u8>]) -> Self {
        let mut root = Self::default();
        for (id, string) in strings.iter().enumerate() {
            let mut node = &mut root;
            for &symbol in string {
                node = node.children.entry(symbol).or_default();
            }
            node.id = Some(id as u32);
        }
        root
    }

    pub fn encode(&self, symbols: &[u8]) -> Vec<u32> {
        let (mut ids, mut at) = (Vec::new(), 0);
        while at < symbols.len() {
            let (mut node, mut best) = (self, (0, 0));
            for (i, symbol) in symbols[at..].iter().enumerate() {
                let Some(child) = node.children.get(symbol) else { break };
                node = child;
                if let Some(id) = node.id {
                    best = (id, i + 1);
                }
            }
            ids.push(best.0);
            at += best.1;
        }
        ids
    }
}

/// xorshift64* (Vigna 2016), so that tests need no crate.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n
    }

    /// Symbols below `n_levels`: a walk that often stays where it is, or uniform ones where `smooth` is false.
    pub fn symbols(&mut self, length: usize, n_levels: u64, smooth: bool) -> Vec<u8> {
        let mut level = self.below(n_levels);
        (0..length)
            .map(|_| {
                level = match (smooth, self.below(4)) {
                    (true, 0) => (level + 1).min(n_levels - 1),
                    (true, 1) => level.saturating_sub(1),
                    (true, _) => level,
                    (false, _) => self.below(n_levels),
                };
                level as u8
            })
            .collect()
    }
}
