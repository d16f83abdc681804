//! Plain ways to do the same, as a yardstick for `apps/bench/bpe.py`: recount all pairs for every merge, walk a tree of hash maps.
//!
//!     reference recount SYMBOLS N_MERGES N_THREADS    one string; writes the pairs (u32)
//!     reference kept SYMBOLS LENGTH PAIRS             longest match of strings of LENGTH symbols; writes the ids (u32)
//!     reference rebuilt SYMBOLS LENGTH PAIRS          the same, the tree built anew for every string, as ECG-Byte does
//!     reference limits SYMBOLS                        what this machine can do at best: prints one JSON object

use std::cmp::Reverse;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::hint::black_box;
use std::io::{Error, ErrorKind, Result, Write};
use std::thread;
use std::time::Instant;

/// One multiplication per pair, as in ECG-Byte's trainer; its encoder's tree is made of standard maps.
#[derive(Default)]
struct Multiply(u64);

impl Hasher for Multiply {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(u64::from(byte)));
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

type Counts = HashMap<u64, u64, BuildHasherDefault<Multiply>>;

fn recount(symbols: &[u8], n_merges: usize, n_threads: usize) -> Vec<u32> {
    let mut ids: Vec<u32> = symbols.iter().map(|&symbol| u32::from(symbol)).collect();
    let mut tables: Vec<Counts> = vec![Counts::default(); n_threads];
    let mut pairs = Vec::new();
    for merge in 0..n_merges as u32 {
        let share = ids.len().div_ceil(n_threads);
        thread::scope(|scope| {
            for (part, table) in tables.iter_mut().enumerate() {
                let ids = &ids[(part * share).min(ids.len())..((part + 1) * share + 1).min(ids.len())];
                scope.spawn(move || {
                    table.clear();
                    ids.windows(2).for_each(|pair| *table.entry(u64::from(pair[0]) << 32 | u64::from(pair[1])).or_default() += 1);
                });
            }
        });
        let (first, others) = tables.split_at_mut(1);
        for (&pair, &count) in others.iter().flatten() {
            *first[0].entry(pair).or_default() += count;
        }
        let Some((&best, _)) = first[0].iter().max_by_key(|&(&pair, &count)| (count, Reverse(pair))) else { break };
        let (left, right) = ((best >> 32) as u32, best as u32);
        pairs.extend([left, right]);
        let (mut from, mut to) = (0, 0);
        while from < ids.len() {
            let hit = ids[from] == left && from + 1 < ids.len() && ids[from + 1] == right;
            ids[to] = if hit { 256 + merge } else { ids[from] };
            from += 1 + usize::from(hit);
            to += 1;
        }
        ids.truncate(to);
    }
    pairs
}

#[derive(Default)]
struct Node {
    children: HashMap<u8, Node>,
    id: Option<u32>,
}

impl Node {
    fn tree(strings: &[Vec<u8>]) -> Self {
        let mut root = Self::default();
        for (id, string) in (0..).zip(strings) {
            string.iter().fold(&mut root, |node, &symbol| node.children.entry(symbol).or_default()).id = Some(id);
        }
        root
    }

    fn encode(&self, symbols: &[u8], ids: &mut Vec<u32>) {
        let mut at = 0;
        while at < symbols.len() {
            let (mut node, mut best) = (self, (0, 1));
            for (depth, symbol) in (1..).zip(&symbols[at..]) {
                let Some(child) = node.children.get(symbol) else { break };
                node = child;
                best = node.id.map_or(best, |id| (id, depth));
            }
            ids.push(best.0);
            at += best.1;
        }
    }
}

fn longest(symbols: &[u8], length: usize, pairs: &[u8], kept: bool) -> Vec<u32> {
    let part = |bytes: &[u8]| bytes.iter().rev().fold(0, |value, &byte| value << 8 | usize::from(byte));
    let mut strings: Vec<Vec<u8>> = (0..=255).map(|symbol| vec![symbol]).collect();
    for pair in pairs.chunks_exact(8) {
        strings.push([strings[part(&pair[..4])].clone(), strings[part(&pair[4..])].clone()].concat());
    }
    let mut ids = Vec::new();
    let tree = kept.then(|| Node::tree(&strings));
    for string in symbols.chunks(length) {
        match &tree {
            Some(tree) => tree.encode(string, &mut ids),
            None => Node::tree(&strings).encode(string, &mut ids),
        }
    }
    ids
}

/// Nanoseconds of one load whose address the load before it gave, over `n` places visited in one random ring.
fn dependent_load(n: usize) -> f64 {
    let mut order: Vec<u32> = (0..n as u32).collect();
    let mut state = 1u64;
    for i in (1..n).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(i, ((state >> 33) % i as u64) as usize); // Sattolo's shuffle: a single ring
    }
    let rounds = 1 << 18;
    least(99, || (0..rounds).fold(0, |at: u32, _| order[at as usize])) / rounds as f64
}

fn least<T>(n: usize, work: impl Fn() -> T) -> f64 {
    let once = |_| {
        let start = Instant::now();
        black_box(work());
        start.elapsed().as_nanos() as f64
    };
    (0..n).map(once).fold(f64::INFINITY, f64::min)
}

fn limits(symbols: &[u8]) -> String {
    let copied = symbols.to_vec();
    let copy = least(9, || black_box(&copied).to_vec()) / symbols.len() as f64;
    let sweep = least(9, || {
        let mut table = vec![0u32; 1 << 16];
        symbols.windows(2).for_each(|pair| table[usize::from(pair[0]) << 8 | usize::from(pair[1])] += 1);
        table
    });
    let (l1, l2) = (dependent_load(1 << 12), dependent_load(1 << 16));
    format!("{{\"copy_ns\": {copy}, \"sweep_ns\": {}, \"l1_ns\": {l1}, \"l2_ns\": {l2}}}", sweep / symbols.len() as f64)
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    let number = |word: &str| word.parse::<usize>().map_err(|error| Error::new(ErrorKind::InvalidInput, format!("{word}: {error}")));
    let values = match words[..] {
        ["recount", symbols, n_merges, n_threads] => recount(&std::fs::read(symbols)?, number(n_merges)?, number(n_threads)?),
        [how @ ("kept" | "rebuilt"), symbols, length, pairs] => longest(&std::fs::read(symbols)?, number(length)?, &std::fs::read(pairs)?, how == "kept"),
        ["limits", symbols] => {
            println!("{}", limits(&std::fs::read(symbols)?));
            return Ok(());
        }
        _ => return Err(Error::new(ErrorKind::InvalidInput, "see the first lines of this file")),
    };
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    std::io::stdout().write_all(&bytes)
}
