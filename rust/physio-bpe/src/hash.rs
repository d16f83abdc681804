//! A table from pairs of ids to a number: open addressing, multiplicative hashing, no deletion.

const EMPTY: u64 = u64::MAX;
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15; // 2^64 / golden ratio (Knuth, The Art of Computer Programming 3, section 6.4)

/// Value that [`PairMap::get`] gives for a pair that is not there.
pub(crate) const ABSENT: u32 = u32::MAX;

/// `(left, right) -> u32`.
#[derive(Debug, Clone)]
pub(crate) struct PairMap {
    cells: Vec<(u64, u32)>,
    shift: u32,
    n: usize,
}

fn key(left: u32, right: u32) -> u64 {
    (u64::from(left) << 32) | u64::from(right)
}

impl PairMap {
    pub(crate) fn with_capacity(n: usize) -> Self {
        let bits = (2 * n.max(8)).next_power_of_two().trailing_zeros();
        Self { cells: vec![(EMPTY, ABSENT); 1 << bits], shift: 64 - bits, n: 0 }
    }

    #[inline]
    fn find(&self, key: u64) -> usize {
        let mask = self.cells.len() - 1;
        let mut at = (key.wrapping_mul(GOLDEN) >> self.shift) as usize;
        while self.cells[at & mask].0 != key && self.cells[at & mask].0 != EMPTY {
            at += 1;
        }
        at & mask
    }

    #[inline]
    pub(crate) fn get(&self, left: u32, right: u32) -> u32 {
        self.cells[self.find(key(left, right))].1
    }

    /// Sets the value of a pair; ids stay below `u32::MAX`, so that no key is the empty mark.
    pub(crate) fn insert(&mut self, left: u32, right: u32, value: u32) {
        if 2 * (self.n + 1) > self.cells.len() {
            let mut larger = Self::with_capacity(2 * self.n + 2);
            for &(key, value) in self.cells.iter().filter(|cell| cell.0 != EMPTY) {
                let at = larger.find(key);
                larger.cells[at] = (key, value);
            }
            larger.n = self.n;
            *self = larger;
        }
        let key = key(left, right);
        let at = self.find(key);
        self.n += usize::from(self.cells[at].0 == EMPTY);
        self.cells[at] = (key, value);
    }

    pub(crate) fn clear(&mut self) {
        self.cells.fill((EMPTY, ABSENT));
        self.n = 0;
    }
}

/// A set of pairs that now and then claims one that it does not hold (Bloom 1970, with one hash): small enough for the L1 cache.
#[derive(Debug, Clone)]
pub(crate) struct PairFilter {
    words: Vec<u64>,
    shift: u32,
}

impl PairFilter {
    pub(crate) fn with_capacity(n: usize) -> Self {
        let bits = (32 * n).next_power_of_two().clamp(1 << 10, 1 << 20).trailing_zeros();
        Self { words: vec![0; 1 << (bits - 6)], shift: 64 - bits }
    }

    #[inline]
    fn bit(&self, left: u32, right: u32) -> usize {
        (key(left, right).wrapping_mul(GOLDEN) >> self.shift) as usize
    }

    pub(crate) fn insert(&mut self, left: u32, right: u32) {
        let bit = self.bit(left, right);
        self.words[bit / 64] |= 1 << (bit % 64);
    }

    #[inline]
    pub(crate) fn has(&self, left: u32, right: u32) -> bool {
        let bit = self.bit(left, right);
        self.words[bit / 64] >> (bit % 64) & 1 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_was_put_in_while_it_grows() {
        let mut map = PairMap::with_capacity(1);
        for i in 0..5000 {
            map.insert(i % 71, i, i * 2);
        }
        assert!((0..5000).all(|i| map.get(i % 71, i) == i * 2));
        assert_eq!(map.get(71, 3), ABSENT);
        map.clear();
        assert_eq!(map.get(1, 1), ABSENT);
    }
}
