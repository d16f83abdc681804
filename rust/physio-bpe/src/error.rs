//! What can be wrong with an input, each naming the place.

use std::fmt;

/// Why a call was refused or stopped; the messages say what each field is.
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// `offsets` is empty.
    OffsetsEmpty,
    /// `offsets[0]` is not 0.
    OffsetsStart(i64),
    /// `offsets[at]` is below the one before it.
    OffsetsDecrease { at: usize, value: i64, before: i64 },
    /// The last offset is not the number of values.
    OffsetsEnd { value: i64, n_values: usize },
    /// One sequence holds more symbols than positions can name.
    SegmentTooLong { segment: usize, length: usize, limit: usize },
    /// One weight per segment is needed.
    WeightsLength { n_weights: usize, n_segments: usize },
    /// Weighted pair counts would not fit into 64 bits.
    WeightsOverflow { segment: usize },
    /// A merge names an id that no earlier merge made.
    UnknownPart { merge: usize, pair: (u32, u32) },
    /// Two merges expand to the same string.
    DuplicateToken { id: u32, earlier: u32 },
    /// One token expands to more symbols than allowed.
    TokenTooLong { id: u32, length: u64, limit: u64 },
    /// All tokens together expand to more symbols than allowed.
    VocabularyTooLong { id: u32, length: u64, limit: u64 },
    /// More merges than ids are left for.
    TooManyMerges { n_merges: usize, limit: usize },
    /// The search tree of the vocabulary would be too large.
    TreeTooLarge { id: u32, limit: usize },
    /// The automaton of the vocabulary would be too large.
    TooManyClasses { n_left: usize, n_right: usize },
    /// An id outside the vocabulary.
    UnknownId { at: usize, id: u32, n_tokens: usize },
    /// The symbols of these ids do not fit into memory.
    OutputTooLong { length: u64 },
    /// The caller asked to stop.
    Interrupted,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OffsetsEmpty => write!(f, "offsets is empty: it holds one value more than there are segments, the first 0"),
            Self::OffsetsStart(value) => write!(f, "offsets[0] is {value}: it must be 0"),
            Self::OffsetsDecrease { at, value, before } => {
                write!(f, "offsets[{at}] is {value}, below offsets[{}] = {before}: offsets must not decrease", at - 1)
            }
            Self::OffsetsEnd { value, n_values } => write!(f, "offsets ends at {value}, but {n_values} values were given: the two must be equal"),
            Self::SegmentTooLong { segment, length, limit } => {
                write!(f, "segment {segment} holds {length} symbols, the limit is {}: cut it", limit - 2)
            }
            Self::WeightsLength { n_weights, n_segments } => write!(f, "weights has {n_weights} values for {n_segments} segments: give one each"),
            Self::WeightsOverflow { segment } => write!(f, "weights[{segment}]: weighted counts would exceed 64 bits; divide the weights"),
            Self::UnknownPart { merge, pair } => {
                write!(f, "pairs[{merge}] is {pair:?}: a merge may name only ids below its own, {}", 256 + merge)
            }
            Self::DuplicateToken { id, earlier } => {
                write!(f, "pairs[{}]: token {id} spells the same symbols as token {earlier}; every token must be another string", id - 256)
            }
            Self::TokenTooLong { id, length, limit } => write!(f, "pairs[{}]: token {id} expands to {length} symbols, the limit is {limit}", id - 256),
            Self::VocabularyTooLong { id, length, limit } => {
                write!(f, "pairs[{}]: the tokens up to {id} expand to {length} symbols together, the limit is {limit}", id - 256)
            }
            Self::TooManyMerges { n_merges, limit } => write!(f, "{n_merges} merges given, the limit is {limit}"),
            Self::TreeTooLarge { id, limit } => {
                write!(f, "token {id}: the search tree of this vocabulary needs more than {limit} cells; use mode \"bpe\" or shorter tokens")
            }
            Self::TooManyClasses { n_left, n_right } => write!(f, "the vocabulary has {n_left} and {n_right} or more classes of tokens, too many for a table"),
            Self::UnknownId { at, id, n_tokens } => write!(f, "ids[{at}] is {id}: the vocabulary has ids 0 to {}", n_tokens - 1),
            Self::OutputTooLong { length } => write!(f, "ids stand for {length} symbols, more than memory holds: decode fewer at a time"),
            Self::Interrupted => write!(f, "stopped by the caller"),
        }
    }
}

impl std::error::Error for Error {}
