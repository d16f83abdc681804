//! Greedy longest match, the encoding rule of ECG-Byte, in one pass without going back.
//!
//! Where the walk through the tree cannot go on, the tokens that greedy matching would emit for the string of this node, and the node of
//! what is left over, depend on the node alone and are found beforehand (Song et al. 2021, "Fast WordPiece Tokenization", section 3).

use crate::error::Error;
use crate::trie::{NO_TOKEN, Trie};
use crate::vocabulary::Vocabulary;

const NOTHING: u32 = u32::MAX;

/// What to do at a node that has no child for the next symbol.
#[derive(Debug, Clone, Copy)]
struct Leave {
    /// Last entry of `LongestEncoder::emitted` for this node.
    emit: u32,
    /// Row to go on from.
    row: u32,
}

/// The prepared tree.
#[derive(Debug)]
pub struct LongestEncoder {
    trie: Trie,
    leave: Vec<Leave>,
    /// Emitted tokens, each with the entry that comes before it: nodes share their beginnings.
    emitted: Vec<(u32, u32)>,
}

impl LongestEncoder {
    /// Builds the tree of all tokens.
    pub fn new(vocabulary: &Vocabulary) -> Result<Self, Error> {
        let (trie, edges) = Trie::new(vocabulary, |_| true)?;
        let mut leave = vec![Leave { emit: NOTHING, row: 0 }; trie.token.len()];
        let mut emitted: Vec<(u32, u32)> = Vec::new();
        let mut chain = Vec::new();
        for edge in edges {
            let node = trie.node(edge.child);
            let token = trie.token[node];
            if token != NO_TOKEN {
                emitted.push((token, NOTHING));
                leave[node] = Leave { emit: emitted.len() as u32 - 1, row: 0 };
                continue;
            }
            let Leave { mut emit, mut row } = leave[trie.node(edge.parent)];
            while trie.child(row, edge.column) == 0 {
                let next = leave[trie.node(row)];
                unwind(&emitted, next.emit, &mut chain);
                for &token in chain.iter().rev() {
                    emitted.push((token, emit));
                    emit = emitted.len() as u32 - 1;
                }
                row = next.row;
            }
            leave[node] = Leave { emit, row: trie.child(row, edge.column) };
        }
        Ok(Self { trie, leave, emitted })
    }

    /// Appends the ids of one sequence.
    pub fn encode(&self, symbols: &[u8], ids: &mut Vec<u32>) {
        let mut row = 0u32;
        for &symbol in symbols {
            let column = self.trie.column[symbol as usize];
            loop {
                let child = self.trie.child(row, column);
                if child != 0 {
                    row = child;
                    break;
                }
                if row == 0 {
                    ids.push(u32::from(symbol));
                    break;
                }
                row = self.leave(row, ids);
            }
        }
        while row != 0 {
            row = self.leave(row, ids);
        }
    }

    /// Emits what greedy matching gives for the string of a node; returns the row of the rest.
    #[inline]
    fn leave(&self, row: u32, ids: &mut Vec<u32>) -> u32 {
        let leave = self.leave[self.trie.node(row)];
        let (token, before) = self.emitted[leave.emit as usize];
        if before == NOTHING {
            ids.push(token);
        } else {
            let first = ids.len();
            let mut at = leave.emit;
            while at != NOTHING {
                let (token, before) = self.emitted[at as usize];
                ids.push(token);
                at = before;
            }
            ids[first..].reverse();
        }
        leave.row
    }
}

fn unwind(emitted: &[(u32, u32)], mut at: u32, chain: &mut Vec<u32>) {
    chain.clear();
    while at != NOTHING {
        chain.push(emitted[at as usize].0);
        at = emitted[at as usize].1;
    }
}
