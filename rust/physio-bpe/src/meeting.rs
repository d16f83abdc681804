//! Whether two tokens stay apart where they meet, for all pairs at once.
//!
//! Un-merging a token from the right gives the tokens that stood at its right edge, each until its parent took it. Such a token matters
//! only up to the highest rank at which it could have merged with something on its right before that; most could not, and few others
//! differ. Tokens with the same history of what matters form a class, and one bit per two classes answers everything.

use std::collections::HashMap;

use crate::error::Error;
use crate::vocabulary::{N_SYMBOLS, Vocabulary};

const MAX_BITS: usize = 1 << 27; // 16 MiB of answers
const MAX_HISTORY: usize = 1 << 22;
const MAX_WORK: usize = 1 << 30;

/// (token at the edge, highest rank at which it could have merged across): a merge up to that rank crosses the border.
type History = Vec<(u32, u32)>;

/// One bit per class of left tokens and class of right tokens.
#[derive(Debug)]
pub(crate) struct Meetings {
    left_row: Vec<u32>, // of each token: where its row starts, in bits
    right_column: Vec<u32>,
    crossed: Vec<u64>,
}

impl Meetings {
    /// Refuses vocabularies of so many classes that the answers would take more than 16 MiB, or too long to find.
    pub(crate) fn new(vocabulary: &Vocabulary) -> Result<Self, Error> {
        let pairs = vocabulary.pairs();
        let (left_class, lefts) = classes(vocabulary, |pair| (pair.0, pair.1), |ranks, parent| ranks.partition_point(|&rank| rank < parent))?;
        let (right_class, rights) = classes(vocabulary, |pair| (pair.1, pair.0), |ranks, parent| ranks.partition_point(|&rank| rank <= parent))?;
        let width = rights.len().div_ceil(64);
        let too_many = Error::TooManyClasses { n_left: lefts.len(), n_right: rights.len() };
        if width * lefts.len() * 64 > MAX_BITS {
            return Err(too_many);
        }
        let (with_left, with_right) = (holders(&lefts, vocabulary.n_tokens()), holders(&rights, vocabulary.n_tokens()));
        let work: usize = pairs.iter().map(|&(left, right)| with_left[left as usize].len() * width + with_right[right as usize].len()).sum();
        if work > MAX_WORK {
            return Err(too_many);
        }
        let mut crossed = vec![0u64; width * lefts.len()];
        let mut mask = vec![0u64; width];
        for (rank, &(left, right)) in (N_SYMBOLS as u32..).zip(pairs) {
            mask.fill(0);
            for &(class, _) in with_right[right as usize].iter().filter(|holder| rank <= holder.1) {
                mask[class as usize / 64] |= 1 << (class % 64);
            }
            for &(class, _) in with_left[left as usize].iter().filter(|holder| rank <= holder.1) {
                let row = class as usize * width;
                crossed[row..row + width].iter_mut().zip(&mask).for_each(|(word, mask)| *word |= mask);
            }
        }
        let left_row = left_class.iter().map(|&class| class * 64 * width as u32).collect();
        Ok(Self { left_row, right_column: right_class, crossed })
    }

    /// True where `left` then `right`, each encoded alone, stay apart when they meet.
    #[inline]
    pub(crate) fn apart(&self, left: u32, right: u32) -> bool {
        let bit = self.left_row[left as usize] + self.right_column[right as usize];
        self.crossed[bit as usize / 64] >> (bit % 64) & 1 == 0
    }
}

/// The class of every token, and the history of every class. `split` gives (the part across the border's side that a merge is looked up
/// by, the other one); `below` counts the ranks, ascending, at which a token could still merge before its parent came.
fn classes(vocabulary: &Vocabulary, split: impl Fn((u32, u32)) -> (u32, u32), below: impl Fn(&[u32], u32) -> usize) -> Result<(Vec<u32>, Vec<History>), Error> {
    let pairs = vocabulary.pairs();
    let mut ranks: Vec<Vec<u32>> = vec![Vec::new(); vocabulary.n_tokens()];
    for (rank, &pair) in (N_SYMBOLS as u32..).zip(pairs) {
        ranks[split(pair).0 as usize].push(rank);
    }
    let mut known: HashMap<History, u32> = HashMap::new();
    let (mut class_of, mut histories, mut total) = (Vec::with_capacity(vocabulary.n_tokens()), Vec::new(), 0);
    for id in 0..vocabulary.n_tokens() as u32 {
        let mut history = History::new();
        let (mut token, mut parent) = (id, u32::MAX);
        loop {
            total += 1;
            if let Some(highest) = below(&ranks[token as usize], parent).checked_sub(1) {
                history.push((token, ranks[token as usize][highest]));
            }
            let Some(merge) = (token as usize).checked_sub(N_SYMBOLS) else { break };
            (parent, token) = (token, split(pairs[merge]).1);
        }
        if total > MAX_HISTORY {
            return Err(Error::TooManyClasses { n_left: histories.len(), n_right: histories.len() });
        }
        let n = known.len() as u32;
        let class = *known.entry(history).or_insert_with_key(|history| {
            histories.push(history.clone());
            n
        });
        class_of.push(class);
    }
    Ok((class_of, histories))
}

/// For every token the classes whose history holds it, with the highest rank.
fn holders(histories: &[History], n_tokens: usize) -> Vec<Vec<(u32, u32)>> {
    let mut holders = vec![Vec::new(); n_tokens];
    for (class, history) in (0u32..).zip(histories) {
        for &(token, highest) in history {
            holders[token as usize].push((class, highest));
        }
    }
    holders
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::QueueEncoder;

    #[test]
    fn tokens_are_apart_where_merging_their_joint_string_gives_them_back() {
        let mut state = 9u64;
        let mut pairs: Vec<(u32, u32)> = (0..3).map(|symbol| (symbol, symbol)).collect();
        while pairs.len() < 60 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let part = |bits: u64| {
                let i = (bits % (4 + pairs.len() as u64)) as u32;
                if i < 4 { i } else { N_SYMBOLS as u32 + i - 4 }
            };
            pairs.push((part(state >> 33), part(state >> 13 & 0xFFFF)));
            if Vocabulary::new(pairs.clone()).map_or(true, |vocabulary| vocabulary.token_length(vocabulary.n_tokens() as u32 - 1) > 30) {
                pairs.pop();
            }
        }
        let Ok(vocabulary) = Vocabulary::new(pairs) else { unreachable!("checked above") };
        let Ok(meetings) = Meetings::new(&vocabulary) else { unreachable!("a small vocabulary fits") };
        let mut queue = QueueEncoder::default();
        let tokens: Vec<u32> = (0..4).chain(N_SYMBOLS as u32..vocabulary.n_tokens() as u32).filter(|&id| vocabulary.is_reachable(id)).collect();
        let mut n_crossed = 0;
        for &left in &tokens {
            for &right in &tokens {
                let mut ids = Vec::new();
                queue.encode(&vocabulary, &[vocabulary.token(left), vocabulary.token(right)].concat(), &mut ids);
                assert_eq!(meetings.apart(left, right), ids == [left, right], "{left}, {right}");
                n_crossed += usize::from(ids != [left, right]);
            }
        }
        assert!(n_crossed > 50 && n_crossed + 50 < tokens.len() * tokens.len(), "{n_crossed} of {} tokens squared", tokens.len());
    }
}
