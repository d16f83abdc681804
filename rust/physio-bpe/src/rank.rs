//! Rank-order encoding without merging: from the right, token by token, each foretold by an automaton and verified.
//!
//! Tokens, each the encoding of its own string, are the rank-order encoding of their joint string if and only if all neighbours stay
//! apart: no merge crosses a border, so each token is merged as if alone. Hence the encoding of every prefix is the beginning of the whole
//! up to a border, every string has one such sequence, and any search that finds one is exact.
//!
//! Forwards, an Aho-Corasick automaton (Aho and Corasick 1975) finds for each position the longest string of the token tree that ends
//! there. Backwards, the last token of that string's own encoding is tried first, then the other tokens that end there. A position without
//! a way on is dead for good, because the encoding of what follows it is unique too: the search comes to no position twice.

use crate::apart::Apart;
use crate::error::Error;
use crate::trie::{NO_TOKEN, Trie};
use crate::vocabulary::Vocabulary;

const UNTRIED: u32 = u32::MAX - 1; // no token: the forecast was tried already
const MAX_TRIED: usize = 64; // tokens tried when a node's forecast is made: a wrong one costs time only

/// What ends at a node of the tree.
#[derive(Debug, Clone, Copy)]
struct Ending {
    /// Last token of the encoding of the node's string.
    last: u32,
    /// The token before `last` in that encoding, which therefore stays apart from it.
    before: u32,
    /// The longest token that the string ends with.
    longest: u32,
}

/// The automaton, shared between threads.
#[derive(Debug)]
pub struct RankEncoder {
    /// `children` leads on from every node by every symbol: to the longest string of the tree that ends there.
    trie: Trie,
    endings: Vec<Ending>,
    /// The longest token that a token ends with, itself left out.
    shorter: Vec<u32>,
    apart: Apart,
}

/// Buffers for one sequence at a time, to be reused.
#[derive(Debug, Default)]
pub struct Scratch {
    rows: Vec<u32>,
    dead: Vec<u64>,
}

impl RankEncoder {
    /// Builds the automaton of all reachable tokens.
    pub fn new(vocabulary: &Vocabulary) -> Result<Self, Error> {
        let (mut trie, edges) = Trie::new(vocabulary, |id| vocabulary.is_reachable(id))?;
        let nothing = Ending { last: NO_TOKEN, before: NO_TOKEN, longest: NO_TOKEN };
        let mut endings = vec![nothing; trie.token.len()];
        let mut shorter = vec![NO_TOKEN; vocabulary.n_tokens()];
        // By depth: the row that a node falls back to, and its missing children from there.
        let mut back = vec![0u32; trie.token.len()];
        for edge in &edges {
            let (node, row) = (trie.node(edge.child), edge.child as usize);
            let fallback = if edge.parent == 0 { 0 } else { trie.child(back[trie.node(edge.parent)], edge.column) };
            back[node] = fallback;
            let below = endings[trie.node(fallback)].longest;
            let token = trie.token[node];
            endings[node].longest = if token == NO_TOKEN { below } else { token };
            if token != NO_TOKEN {
                shorter[token as usize] = below;
            }
            for column in 0..trie.width {
                if trie.children[row + column] == 0 {
                    trie.children[row + column] = trie.children[fallback as usize + column];
                }
            }
        }
        let apart = Apart::new(vocabulary, &trie.column, trie.width);
        let mut encoder = Self { trie, endings, shorter, apart };
        encoder.foretell(vocabulary);
        Ok(encoder)
    }

    /// The last two tokens of the encoding of every node's string.
    fn foretell(&mut self, vocabulary: &Vocabulary) {
        let mut lasts = Vec::new(); // of the nodes above
        for id in 0..vocabulary.n_tokens() as u32 {
            let symbols = vocabulary.token(id);
            if !vocabulary.is_reachable(id) || self.trie.column[symbols[0] as usize] == 0 {
                continue;
            }
            lasts.clear();
            let mut row = 0;
            for (depth, &symbol) in (1..).zip(symbols) {
                row = self.trie.child(row, self.trie.column[symbol as usize]);
                let node = self.trie.node(row);
                if self.endings[node].last == NO_TOKEN {
                    let (last, before) = self.last_two(vocabulary, self.endings[node].longest, depth, &lasts);
                    self.endings[node] = Ending { last, before, ..self.endings[node] };
                }
                lasts.push(self.endings[node].last);
            }
        }
    }

    fn last_two(&self, vocabulary: &Vocabulary, longest: u32, depth: usize, lasts: &[u32]) -> (u32, u32) {
        let mut token = longest;
        for _ in 0..MAX_TRIED {
            if token == NO_TOKEN {
                break;
            }
            let start = depth - vocabulary.token_length(token) as usize;
            if start == 0 {
                return (token, NO_TOKEN);
            }
            if vocabulary.stays_apart(lasts[start - 1], token) {
                return (token, lasts[start - 1]);
            }
            token = self.shorter[token as usize];
        }
        (longest, NO_TOKEN)
    }

    /// Appends the ids of one sequence.
    pub fn encode(&self, vocabulary: &Vocabulary, symbols: &[u8], scratch: &mut Scratch, ids: &mut Vec<u32>) {
        scratch.rows.clear();
        let mut row = 0;
        scratch.rows.extend(symbols.iter().map(|&symbol| {
            row = self.trie.child(row, self.trie.column[symbol as usize]);
            row
        }));
        let base = ids.len();
        self.search(vocabulary, symbols, scratch, ids);
        ids[base..].reverse();
    }

    /// Appends the tokens from the last to the first.
    fn search(&self, vocabulary: &Vocabulary, symbols: &[u8], scratch: &mut Scratch, ids: &mut Vec<u32>) {
        let Scratch { rows, dead } = scratch;
        let base = ids.len();
        dead.clear();
        let mut end = symbols.len();
        let (mut right, mut first) = (NO_TOKEN, Some(true));
        while end > 0 {
            match self.choose(vocabulary, symbols, rows, dead, end, right, first) {
                Some((token, next_first)) => {
                    ids.push(token);
                    end -= vocabulary.token_length(token) as usize;
                    (right, first) = (token, Some(next_first));
                }
                None => {
                    if dead.is_empty() {
                        dead.resize(symbols.len() / 64 + 1, 0);
                    }
                    dead[end / 64] |= 1 << (end % 64);
                    let Some(last) = ids.pop() else { return }; // not reached: every string has an encoding
                    end += vocabulary.token_length(last) as usize;
                    right = if ids.len() == base { NO_TOKEN } else { ids[ids.len() - 1] };
                    first = None;
                }
            }
        }
    }

    /// The token to put before `right`, and whether the forecast for what comes before it stays apart from it.
    ///
    /// `first` says whether the forecast here stays apart from `right`, where that is known. A token whose own left neighbour is foretold
    /// to merge with it is taken only if there is no other: either it or that forecast is wrong.
    #[inline]
    #[allow(clippy::too_many_arguments)]
    fn choose(&self, vocabulary: &Vocabulary, symbols: &[u8], rows: &[u32], dead: &[u64], end: usize, right: u32, first: Option<bool>) -> Option<(u32, bool)> {
        let here = self.ending(rows[end - 1], symbols[end - 1]);
        let mut doubtful = None;
        let mut token = here.last;
        let mut before = here.before;
        loop {
            let known = if before == UNTRIED { None } else { first };
            let start = end - vocabulary.token_length(token) as usize;
            let stands = known.unwrap_or_else(|| right == NO_TOKEN || self.apart.holds(vocabulary, token, right));
            if stands && (dead.is_empty() || dead[start / 64] >> (start % 64) & 1 == 0) {
                if start == 0 {
                    return Some((token, true));
                }
                let left = self.ending(rows[start - 1], symbols[start - 1]);
                if left.last == before || self.apart.holds(vocabulary, left.last, token) {
                    return Some((token, true));
                }
                if before != UNTRIED && !self.is_borne_out(vocabulary, symbols, rows, start, &left) {
                    return Some((token, false)); // rather that forecast is wrong than this one
                }
                doubtful = doubtful.or(Some((token, false)));
            }
            let next = if before == UNTRIED { self.shorter[token as usize] } else { here.longest };
            token = if next == here.last { self.shorter[next as usize] } else { next };
            if token == NO_TOKEN {
                return doubtful;
            }
            before = UNTRIED;
        }
    }

    /// Whether the forecast `here` at `end` stays apart from the forecast before it.
    fn is_borne_out(&self, vocabulary: &Vocabulary, symbols: &[u8], rows: &[u32], end: usize, here: &Ending) -> bool {
        let start = end - vocabulary.token_length(here.last) as usize;
        if start == 0 {
            return true;
        }
        let left = self.ending(rows[start - 1], symbols[start - 1]).last;
        left == here.before || self.apart.holds(vocabulary, left, here.last)
    }

    /// What ends at a position; a symbol that no merge holds (row 0) stands alone.
    #[inline]
    fn ending(&self, row: u32, symbol: u8) -> Ending {
        if row == 0 {
            let symbol = u32::from(symbol);
            return Ending { last: symbol, before: NO_TOKEN, longest: symbol };
        }
        self.endings[self.trie.node(row)]
    }
}
