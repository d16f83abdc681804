//! Counting ids: dense arrays that remember what they touched, and the weight of each sequence.

/// How often each id was seen: occurrences, and their weight where sequences are weighted.
#[derive(Debug)]
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
    pub(crate) fn add<const WEIGHTED: bool>(&mut self, id: u32, weight: u64) {
        let n = &mut self.n[id as usize];
        if *n == 0 {
            self.seen.push(id);
        }
        *n += 1;
        if WEIGHTED {
            self.weight[id as usize] += weight;
        }
    }

    /// Occurrences and weight of an id, which is forgotten but for its place in the list of those seen.
    pub(crate) fn take_one(&mut self, id: u32) -> (u32, u64) {
        let n = std::mem::take(&mut self.n[id as usize]);
        (n, self.weight.get_mut(id as usize).map_or(u64::from(n), std::mem::take))
    }

    /// Lowers an id that was seen more often.
    pub(crate) fn subtract(&mut self, id: u32, (n, weight): (u32, u64)) {
        self.n[id as usize] -= n;
        if let Some(total) = self.weight.get_mut(id as usize) {
            *total -= weight;
        }
    }

    /// Every id seen with its occurrences and weight; leaves nothing.
    pub(crate) fn take(&mut self, mut each: impl FnMut(u32, u32, u64)) {
        for id in std::mem::take(&mut self.seen) {
            let (n, weight) = self.take_one(id);
            if n > 0 {
                each(id, n, weight);
            }
        }
    }
}

/// Weight of each sequence, found by position.
#[derive(Debug, Default)]
pub(crate) struct Weights {
    /// Position of the border after each sequence; empty where all weigh the same.
    pub(crate) ends: Vec<u32>,
    pub(crate) weights: Vec<u64>,
}

impl Weights {
    /// Positions mostly ascend: `at` remembers the sequence found last.
    #[inline]
    pub(crate) fn of<const WEIGHTED: bool>(&self, position: usize, at: &mut usize) -> u64 {
        if !WEIGHTED {
            return 1;
        }
        let position = position as u32;
        let before = if *at == 0 { 0 } else { self.ends[*at - 1] };
        if position > self.ends[*at] || position < before {
            *at = self.ends.partition_point(|&end| end < position);
        }
        self.weights[*at]
    }
}
