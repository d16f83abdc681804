//! A batch of independent sequences in one buffer: `values[offsets[i]..offsets[i + 1]]` is sequence i.

use crate::error::Error;

/// Checked view of a batch; `T` is a symbol (`u8`) or an id (`u32`).
#[derive(Debug, Clone, Copy)]
pub struct Segments<'a, T> {
    values: &'a [T],
    offsets: &'a [i64],
}

impl<'a, T> Segments<'a, T> {
    /// Checks that the offsets start at 0, never decrease and end at the number of values.
    pub fn new(values: &'a [T], offsets: &'a [i64]) -> Result<Self, Error> {
        let (Some(&first), Some(&last)) = (offsets.first(), offsets.last()) else {
            return Err(Error::OffsetsEmpty);
        };
        if first != 0 {
            return Err(Error::OffsetsStart(first));
        }
        if let Some(at) = (1..offsets.len()).find(|&at| offsets[at] < offsets[at - 1]) {
            return Err(Error::OffsetsDecrease { at, value: offsets[at], before: offsets[at - 1] });
        }
        if usize::try_from(last) != Ok(values.len()) {
            return Err(Error::OffsetsEnd { value: last, n_values: values.len() });
        }
        Ok(Self { values, offsets })
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// True where there is no sequence at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All values, sequence after sequence.
    pub fn values(&self) -> &'a [T] {
        self.values
    }

    /// Position of the first value of sequence `i` (of the end, for `i == len`).
    pub fn start(&self, i: usize) -> usize {
        self.offsets[i] as usize
    }

    /// Sequence `i`.
    pub fn get(&self, i: usize) -> &'a [T] {
        &self.values[self.start(i)..self.start(i + 1)]
    }

    /// The sequences in order.
    pub fn iter(&self) -> impl Iterator<Item = &'a [T]> + use<'a, T> {
        let (values, offsets) = (self.values, self.offsets);
        offsets.windows(2).map(move |pair| &values[pair[0] as usize..pair[1] as usize])
    }
}

/// Sequences of unequal length that a call returns, in the layout of [`Segments`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ragged<T> {
    /// All sequences, one after the other.
    pub values: Vec<T>,
    /// Where each starts, and the end.
    pub offsets: Vec<i64>,
}
