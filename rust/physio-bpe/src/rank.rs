//! Rank-order encoding without merging: from the right, token by token, each foretold by an automaton and verified.
//!
//! Tokens, each the encoding of its own string, are the rank-order encoding of their joint string if and only if all neighbours stay
//! apart: no merge crosses a border, so each token is merged as if alone. Hence the encoding of every prefix is the beginning of the whole
//! up to a border, every string has one such sequence, and any search that finds one is exact.
//!
//! Forwards, an Aho-Corasick automaton (Aho and Corasick 1975) finds for each position the longest string of the token tree that ends
//! there. Backwards, the last token of that string's own encoding is tried first, then the other tokens that end there. A position without
//! a way on is dead for good, because the encoding of what follows it is unique too: the search comes to no position twice.

use crate::error::Error;
use crate::meeting::Meetings;
use crate::trie::{NO_TOKEN, Trie};
use crate::vocabulary::Vocabulary;

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
    meetings: Meetings,
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
        let meetings = Meetings::new(vocabulary)?;
        let mut encoder = Self { trie, endings, shorter, meetings };
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
            if self.meetings.apart(lasts[start - 1], token) {
                return (token, lasts[start - 1]);
            }
            token = self.shorter[token as usize];
        }
        (longest, NO_TOKEN)
    }

    /// Appends the ids of one sequence.
    pub fn encode(&self, vocabulary: &Vocabulary, symbols: &[u8], scratch: &mut Scratch, ids: &mut Vec<u32>) {
        scratch.rows.resize(symbols.len(), 0);
        self.walk(symbols, &mut scratch.rows);
        scratch.dead.clear();
        let base = ids.len();
        Search { encoder: self, vocabulary, symbols, rows: &scratch.rows, dead: &mut scratch.dead }.run(ids);
        ids[base..].reverse();
    }

    /// The row of the automaton after every symbol.
    ///
    /// Each step waits for the load before it, so four parts of the sequence are walked at once, each as if it began there. Where the text
    /// that counts lies within the part, that is right already; from each border the walk is mended until it meets what is there.
    fn walk(&self, symbols: &[u8], rows: &mut [u32]) {
        let part = symbols.len() / 4;
        let (s0, s1, s2, s3) = (&symbols[..part], &symbols[part..2 * part], &symbols[2 * part..3 * part], &symbols[3 * part..]);
        let (first, second) = rows.split_at_mut(2 * part);
        let ((r0, r1), (r2, r3)) = (first.split_at_mut(part), second.split_at_mut(part));
        let (mut a, mut b, mut c, mut d) = (0, 0, 0, 0);
        for i in 0..part {
            (a, b, c, d) = (self.step(a, s0[i]), self.step(b, s1[i]), self.step(c, s2[i]), self.step(d, s3[i]));
            (r0[i], r1[i], r2[i], r3[i]) = (a, b, c, d);
        }
        for (&symbol, row) in s3[part..].iter().zip(&mut r3[part..]) {
            d = self.step(d, symbol);
            *row = d;
        }
        for border in [part, 2 * part, 3 * part].into_iter().filter(|&border| border > 0) {
            let mut true_row = rows[border - 1];
            for (&symbol, row) in symbols[border..].iter().zip(&mut rows[border..]) {
                true_row = self.step(true_row, symbol);
                if *row == true_row {
                    break;
                }
                *row = true_row;
            }
        }
    }

    #[inline]
    fn step(&self, row: u32, symbol: u8) -> u32 {
        self.trie.child(row, self.trie.column[symbol as usize])
    }
}

/// The way back through one sequence. A border is named by the position after it; what ends there lies to its left.
struct Search<'a> {
    encoder: &'a RankEncoder,
    vocabulary: &'a Vocabulary,
    symbols: &'a [u8],
    rows: &'a [u32],
    dead: &'a mut Vec<u64>, // one bit per border, empty while there is none
}

impl Search<'_> {
    /// Appends the tokens from the last to the first.
    fn run(mut self, ids: &mut Vec<u32>) {
        let base = ids.len();
        let mut end = self.symbols.len();
        let (mut right, mut fits) = (NO_TOKEN, true); // the token chosen last, and whether the forecast at `end` stays apart from it
        while end > 0 {
            let chosen = if fits { self.forecast(end) } else { None };
            match chosen.or_else(|| self.choose(end, right)) {
                Some((token, next_fits)) => {
                    ids.push(token);
                    end -= self.length(token);
                    (right, fits) = (token, next_fits);
                }
                None => {
                    self.bury(end);
                    let Some(last) = ids.pop() else { return }; // not reached: every string has an encoding
                    end += self.length(last);
                    (right, fits) = (if ids.len() == base { NO_TOKEN } else { ids[ids.len() - 1] }, false);
                }
            }
        }
    }

    /// The forecast at `end`, which is known to stay apart from what follows, and whether the forecast before it fits in turn.
    ///
    /// Nothing where the two do not fit and the earlier one fits what is foretold before it: then this forecast is the doubtful one.
    #[inline]
    fn forecast(&self, end: usize) -> Option<(u32, bool)> {
        let here = self.ending(end);
        let start = end - self.length(here.last);
        if self.is_dead(start) {
            return None;
        }
        if start == 0 {
            return Some((here.last, true));
        }
        let left = self.ending(start).last;
        if left == here.before || self.apart(left, here.last) {
            return Some((here.last, true));
        }
        (!self.is_borne_out(start)).then_some((here.last, false))
    }

    /// Whether the forecast at `end` stays apart from the one before it.
    fn is_borne_out(&self, end: usize) -> bool {
        let here = self.ending(end);
        let start = end - self.length(here.last);
        start == 0 || self.apart(self.ending(start).last, here.last)
    }

    /// The token to put before `right`, and whether the forecast for what comes before it stays apart from it.
    ///
    /// A token that does not stay apart from what is foretold before it is taken only if there is no other: one of the two is wrong.
    fn choose(&self, end: usize, right: u32) -> Option<(u32, bool)> {
        let here = self.ending(end);
        let mut doubtful = None;
        let mut token = here.last;
        loop {
            let start = end - self.length(token);
            if self.apart(token, right) && !self.is_dead(start) {
                if start == 0 || self.apart(self.ending(start).last, token) {
                    return Some((token, true));
                }
                doubtful = doubtful.or(Some((token, false)));
            }
            let next = if token == here.last { here.longest } else { self.encoder.shorter[token as usize] };
            token = if next == here.last { self.encoder.shorter[next as usize] } else { next };
            if token == NO_TOKEN {
                return doubtful;
            }
        }
    }

    #[inline]
    fn apart(&self, left: u32, right: u32) -> bool {
        right == NO_TOKEN || self.encoder.meetings.apart(left, right)
    }

    #[inline]
    fn length(&self, token: u32) -> usize {
        self.vocabulary.token_length(token) as usize
    }

    /// What ends at a position; a symbol that no merge holds (row 0) stands alone.
    #[inline]
    fn ending(&self, end: usize) -> Ending {
        let row = self.rows[end - 1];
        if row == 0 {
            let symbol = u32::from(self.symbols[end - 1]);
            return Ending { last: symbol, before: NO_TOKEN, longest: symbol };
        }
        self.encoder.endings[self.encoder.trie.node(row)]
    }

    #[inline]
    fn is_dead(&self, border: usize) -> bool {
        !self.dead.is_empty() && self.dead[border / 64] >> (border % 64) & 1 != 0
    }

    fn bury(&mut self, border: usize) {
        if self.dead.is_empty() {
            self.dead.resize(self.symbols.len() / 64 + 1, 0);
        }
        self.dead[border / 64] |= 1 << (border % 64);
    }
}
