//! Batches over threads: blocks of sequences are taken in turn, results are put together in order.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::error::Error;
use crate::segments::{Ragged, Segments};

const BLOCK: usize = 1 << 16; // values per block: milliseconds of work

/// Runs `work` over all sequences on `n_threads` threads.
///
/// `make` gives each thread its own worker, a function that appends the output of one sequence. `keep_going` is asked now and then on the
/// calling thread; once it says no, the call ends with [`Error::Interrupted`] after the blocks in hand.
pub(crate) fn for_each<T: Sync, U: Copy + Send, W: FnMut(&[T], &mut Vec<U>)>(
    segments: &Segments<'_, T>,
    n_threads: usize,
    values_per_output: usize,
    make: impl Fn() -> W + Sync,
    keep_going: &mut dyn FnMut() -> bool,
) -> Result<Ragged<U>, Error> {
    let blocks = blocks(segments);
    let n_threads = n_threads.clamp(1, blocks.len().max(1));
    let run = |work: &mut W, (first, last): (usize, usize), values: &mut Vec<U>, offsets: &mut Vec<i64>| {
        for i in first..last {
            work(segments.get(i), values);
            offsets.push(values.len() as i64);
        }
    };
    if n_threads == 1 {
        let mut out =
            Ragged { values: Vec::with_capacity(segments.values().len() / values_per_output.max(1)), offsets: Vec::with_capacity(segments.len() + 1) };
        out.offsets.push(0);
        let mut work = make();
        for (i, block) in blocks.into_iter().enumerate() {
            if i > 0 && !keep_going() {
                return Err(Error::Interrupted);
            }
            run(&mut work, block, &mut out.values, &mut out.offsets);
        }
        return Ok(out);
    }
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let done: Mutex<Vec<(usize, Ragged<U>)>> = Mutex::new(Vec::with_capacity(blocks.len()));
    let worker = || {
        let mut work = make();
        while !stop.load(Ordering::Relaxed) {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(&block) = blocks.get(i) else { break };
            let mut part = Ragged { values: Vec::new(), offsets: Vec::with_capacity(block.1 - block.0) };
            run(&mut work, block, &mut part.values, &mut part.offsets);
            if let Ok(mut done) = done.lock() {
                done.push((i, part));
            }
        }
    };
    let interrupted = thread::scope(|scope| {
        let threads: Vec<_> = (0..n_threads).map(|_| scope.spawn(worker)).collect();
        let mut wait = Duration::from_micros(50);
        while threads.iter().any(|thread| !thread.is_finished()) {
            thread::sleep(wait);
            wait = (2 * wait).min(Duration::from_millis(20));
            if !keep_going() {
                stop.store(true, Ordering::Relaxed);
                return true;
            }
        }
        false
    });
    if interrupted {
        return Err(Error::Interrupted);
    }
    Ok(join(done.into_inner().unwrap_or_else(PoisonError::into_inner), segments.len()))
}

fn join<U: Copy>(mut parts: Vec<(usize, Ragged<U>)>, n_segments: usize) -> Ragged<U> {
    parts.sort_unstable_by_key(|part| part.0);
    let n_values = parts.iter().map(|part| part.1.values.len()).sum();
    let mut out = Ragged { values: Vec::with_capacity(n_values), offsets: Vec::with_capacity(n_segments + 1) };
    out.offsets.push(0);
    for (_, part) in parts {
        let start = out.values.len() as i64;
        out.values.extend_from_slice(&part.values);
        out.offsets.extend(part.offsets.iter().map(|end| start + end));
    }
    out
}

/// Ranges of sequences of about [`BLOCK`] values each.
fn blocks<T>(segments: &Segments<'_, T>) -> Vec<(usize, usize)> {
    let mut blocks = Vec::new();
    let mut first = 0;
    for i in 0..segments.len() {
        if segments.start(i + 1) - segments.start(first) >= BLOCK || i + 1 - first >= BLOCK {
            blocks.push((first, i + 1));
            first = i + 1;
        }
    }
    if first < segments.len() {
        blocks.push((first, segments.len()));
    }
    blocks
}
