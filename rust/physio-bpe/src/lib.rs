//! Byte-pair training and encoding of symbol sequences: exact, deterministic for any number of threads, standard library only.
//!
//! Symbols are bytes, ids below 256; merge `i` makes id `256 + i`. The order of training is highest count, then smallest (left, right)
//! pair; overlapping occurrences count ("aaa" holds "aa" twice); no merge crosses the border of a sequence.
#![forbid(unsafe_code)]

mod batch;
mod decode;
mod encode;
mod error;
mod hash;
mod index;
mod longest;
mod meeting;
mod queue;
mod rank;
mod segments;
mod shard;
mod tally;
mod train;
mod trie;
mod vocabulary;

pub use decode::decode;
pub use encode::{Encoder, Mode};
pub use error::Error;
pub use longest::LongestEncoder;
pub use queue::QueueEncoder;
pub use rank::RankEncoder;
pub use segments::{Ragged, Segments};
pub use train::{Progress, Trained, train};
pub use vocabulary::{MAX_MERGES, N_SYMBOLS, Vocabulary};
