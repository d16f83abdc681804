//! The tokens: 256 single symbols, then one token per merge, each the concatenation of two earlier ones.

use std::collections::HashMap;
use std::hint::select_unpredictable;

use crate::error::Error;
use crate::hash::{PairFilter, PairMap};

/// Ids below this are single symbols (bytes).
pub const N_SYMBOLS: usize = 256;
/// Most symbols one token may stand for.
pub const MAX_TOKEN_LENGTH: u64 = 1 << 24;
/// Most symbols all tokens may stand for together.
pub const MAX_TOTAL_LENGTH: u64 = 1 << 27;
/// Most merges of one vocabulary.
pub const MAX_MERGES: usize = 1 << 24;

/// Merges in rank order with everything that follows from them. Merge `i` makes id `256 + i`.
#[derive(Debug)]
pub struct Vocabulary {
    parts: Vec<(u32, u32)>, // of each token; a single symbol is its own
    merged: PairMap,
    may_merge: PairFilter,
    symbols: Vec<u8>,
    starts: Vec<u32>, // of each token in `symbols`, and the end
    reachable: Vec<bool>,
}

impl Vocabulary {
    /// Checks that each merge joins two earlier ids, that no two tokens spell the same symbols, and that lengths stay bounded.
    pub fn new(pairs: Vec<(u32, u32)>) -> Result<Self, Error> {
        if pairs.len() > MAX_MERGES {
            return Err(Error::TooManyMerges { n_merges: pairs.len(), limit: MAX_MERGES });
        }
        check_lengths(&pairs)?;
        let mut symbols: Vec<u8> = (0..=255).collect();
        let mut starts: Vec<u32> = (0..=256).collect();
        let mut merged = PairMap::with_capacity(pairs.len());
        let mut may_merge = PairFilter::with_capacity(pairs.len());
        let mut parts: Vec<(u32, u32)> = (0..N_SYMBOLS as u32).map(|symbol| (symbol, symbol)).collect();
        for (merge, &(left, right)) in pairs.iter().enumerate() {
            for part in [left, right] {
                symbols.extend_from_within(starts[part as usize] as usize..starts[part as usize + 1] as usize);
            }
            starts.push(symbols.len() as u32);
            merged.insert(left, right, (N_SYMBOLS + merge) as u32);
            may_merge.insert(left, right);
            parts.push((left, right));
        }
        let mut vocabulary = Self { parts, merged, may_merge, symbols, starts, reachable: Vec::new() };
        vocabulary.check_distinct()?;
        vocabulary.reachable = vocabulary.find_reachable();
        Ok(vocabulary)
    }

    fn check_distinct(&self) -> Result<(), Error> {
        let mut seen: HashMap<&[u8], u32> = HashMap::with_capacity(self.n_tokens());
        for id in 0..self.n_tokens() as u32 {
            if let Some(earlier) = seen.insert(self.token(id), id) {
                return Err(Error::DuplicateToken { id, earlier });
            }
        }
        Ok(())
    }

    /// A token is reachable when its own string encodes to it: both parts are, and no merge of lower rank crosses their border.
    fn find_reachable(&self) -> Vec<bool> {
        let mut reachable = vec![true; N_SYMBOLS];
        for (merge, &(left, right)) in self.pairs().iter().enumerate() {
            let id = (N_SYMBOLS + merge) as u32;
            let both = reachable[left as usize] && reachable[right as usize];
            reachable.push(both && !self.crosses(left, right, id));
        }
        reachable
    }

    /// Whether a merge below `limit` joins the last token of one side with the first of the other while both sides are being built.
    ///
    /// Rank-order merging runs on both sides as if the other were absent until such a merge comes. The tokens that meet at the border are
    /// found by un-merging, the latest merge first; a merge crosses if it comes before either of them is taken by its parent. Of equal
    /// ranks the leftmost is merged first: hence `crossing < left_parent`, but `crossing <= right_parent`.
    fn crosses(&self, mut left: u32, mut right: u32, limit: u32) -> bool {
        let (mut left_parent, mut right_parent) = (limit, limit);
        loop {
            if self.may_merge.has(left, right) {
                let crossing = self.merged.get(left, right);
                if crossing < left_parent && crossing <= right_parent {
                    return true;
                }
            }
            if left.max(right) < N_SYMBOLS as u32 {
                return false;
            }
            // Which side goes back is a coin toss: selected, not branched on.
            let from_left = left > right;
            let (next_left, next_right) = (self.parts[left as usize].1, self.parts[right as usize].0);
            left_parent = select_unpredictable(from_left, left, left_parent);
            right_parent = select_unpredictable(from_left, right_parent, right);
            left = select_unpredictable(from_left, next_left, left);
            right = select_unpredictable(from_left, right, next_right);
        }
    }

    /// Number of tokens, 256 single symbols included.
    pub fn n_tokens(&self) -> usize {
        self.parts.len()
    }

    /// The two tokens that each merge joins.
    pub fn pairs(&self) -> &[(u32, u32)] {
        &self.parts[N_SYMBOLS..]
    }

    /// The token that a pair merges to, `u32::MAX` where it does not merge.
    #[inline]
    pub(crate) fn merged(&self, left: u32, right: u32) -> u32 {
        self.merged.get(left, right)
    }

    /// Symbols of a token; `id` is below [`Self::n_tokens`].
    #[inline]
    pub fn token(&self, id: u32) -> &[u8] {
        &self.symbols[self.starts[id as usize] as usize..self.starts[id as usize + 1] as usize]
    }

    /// Number of symbols of a token; `id` is below [`Self::n_tokens`].
    #[inline]
    pub fn token_length(&self, id: u32) -> u32 {
        self.starts[id as usize + 1] - self.starts[id as usize]
    }

    /// Whether rank-order encoding ever gives this token: its own string encodes to it.
    pub fn is_reachable(&self, id: u32) -> bool {
        self.reachable[id as usize]
    }
}

/// Refuses forward references and lengths beyond the limits before anything of that size is built.
fn check_lengths(pairs: &[(u32, u32)]) -> Result<(), Error> {
    let mut lengths = vec![1u64; N_SYMBOLS];
    let mut total = N_SYMBOLS as u64;
    for (merge, &pair) in pairs.iter().enumerate() {
        let id = (N_SYMBOLS + merge) as u32;
        if pair.0 >= id || pair.1 >= id {
            return Err(Error::UnknownPart { merge, pair });
        }
        let length = lengths[pair.0 as usize] + lengths[pair.1 as usize];
        if length > MAX_TOKEN_LENGTH {
            return Err(Error::TokenTooLong { id, length, limit: MAX_TOKEN_LENGTH });
        }
        total += length;
        if total > MAX_TOTAL_LENGTH {
            return Err(Error::VocabularyTooLong { id, length: total, limit: MAX_TOTAL_LENGTH });
        }
        lengths.push(length);
    }
    Ok(())
}
