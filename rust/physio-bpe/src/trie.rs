//! The search tree over token strings: one dense row of children per node, one column per symbol that occurs in merges.

use crate::error::Error;
use crate::vocabulary::{N_SYMBOLS, Vocabulary};

/// No token ends at this node.
pub(crate) const NO_TOKEN: u32 = u32::MAX;
/// Most cells of the child table (256 MiB).
const MAX_CELLS: usize = 1 << 26;

/// One node that is not the root.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Edge {
    pub(crate) depth: u32,
    pub(crate) parent: u32,
    pub(crate) column: u16,
    pub(crate) child: u32,
}

/// Nodes are named by the start of their row in `children`, so that one step is one addition and one load.
#[derive(Debug)]
pub(crate) struct Trie {
    /// Columns per row; column 0 belongs to symbols that no merge holds and never has a child.
    pub(crate) width: usize,
    shift: u32,
    /// Column of each symbol.
    pub(crate) column: [u16; N_SYMBOLS],
    /// Row of the child, 0 for none (the root is nobody's child).
    pub(crate) children: Vec<u32>,
    /// Token that ends at a node, by `row / width`.
    pub(crate) token: Vec<u32>,
}

impl Trie {
    /// Tree of all single symbols in use and of the merged tokens for which `keep` holds, and its nodes by depth.
    pub(crate) fn new(vocabulary: &Vocabulary, keep: impl Fn(u32) -> bool) -> Result<(Self, Vec<Edge>), Error> {
        let mut used = [false; N_SYMBOLS];
        for id in vocabulary.pairs().iter().flat_map(|&(left, right)| [left, right]) {
            if let Some(slot) = used.get_mut(id as usize) {
                *slot = true;
            }
        }
        let mut column = [0u16; N_SYMBOLS];
        let mut width = 1;
        for symbol in (0..N_SYMBOLS).filter(|&symbol| used[symbol]) {
            column[symbol] = width;
            width += 1;
        }
        let width = usize::from(width).next_power_of_two(); // so that a row is divided by a shift
        let mut trie = Self { width, shift: width.trailing_zeros(), column, children: vec![0; width], token: vec![NO_TOKEN] };
        let mut edges = Vec::new();
        for id in 0..vocabulary.n_tokens() as u32 {
            if used.get(id as usize).copied().unwrap_or_else(|| keep(id)) {
                trie.insert(vocabulary, id, &mut edges)?;
            }
        }
        edges.sort_by_key(|edge| edge.depth);
        Ok((trie, edges))
    }

    fn insert(&mut self, vocabulary: &Vocabulary, id: u32, edges: &mut Vec<Edge>) -> Result<(), Error> {
        let mut row = 0u32;
        for (depth, &symbol) in vocabulary.token(id).iter().enumerate() {
            let column = self.column[symbol as usize];
            let cell = row as usize + usize::from(column);
            if self.children[cell] == 0 {
                let child = self.children.len();
                if child + self.width > MAX_CELLS {
                    return Err(Error::TreeTooLarge { id, limit: MAX_CELLS });
                }
                self.children[cell] = child as u32;
                self.children.resize(child + self.width, 0);
                self.token.push(NO_TOKEN);
                edges.push(Edge { depth: depth as u32 + 1, parent: row, column, child: child as u32 });
            }
            row = self.children[cell];
        }
        self.token[(row >> self.shift) as usize] = id;
        Ok(())
    }

    /// Row of the child, 0 for none.
    #[inline]
    pub(crate) fn child(&self, row: u32, column: u16) -> u32 {
        self.children[row as usize + usize::from(column)]
    }

    /// Index of a row among the nodes.
    #[inline]
    pub(crate) fn node(&self, row: u32) -> usize {
        (row >> self.shift) as usize
    }
}
