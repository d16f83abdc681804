//! One vocabulary with both its encoders, each prepared when it is first needed.

use std::sync::OnceLock;

use crate::batch;
use crate::error::Error;
use crate::longest::LongestEncoder;
use crate::queue::QueueEncoder;
use crate::rank::{RankEncoder, Scratch};
use crate::segments::{Ragged, Segments};
use crate::vocabulary::Vocabulary;

/// The rule that picks the tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Merges in rank order, leftmost first, as Hugging Face tokenizers do and, where every token is reachable, tiktoken.
    Rank,
    /// The longest token that fits, from left to right, as ECG-Byte does.
    Longest,
}

/// Encodes batches; shared freely between threads.
#[derive(Debug)]
pub struct Encoder {
    vocabulary: Vocabulary,
    longest: OnceLock<Result<LongestEncoder, Error>>,
    rank: OnceLock<Result<RankEncoder, Error>>,
}

impl Encoder {
    /// Takes a checked vocabulary.
    pub fn new(vocabulary: Vocabulary) -> Self {
        Self { vocabulary, longest: OnceLock::new(), rank: OnceLock::new() }
    }

    /// The vocabulary.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Ids of every sequence; `keep_going` is asked now and then on the calling thread.
    pub fn encode(&self, symbols: &Segments<'_, u8>, mode: Mode, n_threads: usize, keep_going: &mut dyn FnMut() -> bool) -> Result<Ragged<u32>, Error> {
        match mode {
            Mode::Rank => match self.rank.get_or_init(|| RankEncoder::new(&self.vocabulary)) {
                Ok(rank) => {
                    let make = || {
                        let mut scratch = Scratch::default();
                        move |symbols: &[u8], ids: &mut Vec<u32>| rank.encode(&self.vocabulary, symbols, &mut scratch, ids)
                    };
                    batch::for_each(symbols, n_threads, 4, make, keep_going)
                }
                Err(_) => {
                    let make = || {
                        let mut queue = QueueEncoder::default();
                        move |symbols: &[u8], ids: &mut Vec<u32>| queue.encode(&self.vocabulary, symbols, ids)
                    };
                    batch::for_each(symbols, n_threads, 4, make, keep_going)
                }
            },
            Mode::Longest => {
                let longest = self.longest.get_or_init(|| LongestEncoder::new(&self.vocabulary)).as_ref().map_err(Clone::clone)?;
                let make = || |symbols: &[u8], ids: &mut Vec<u32>| longest.encode(symbols, ids);
                batch::for_each(symbols, n_threads, 4, make, keep_going)
            }
        }
    }
}
