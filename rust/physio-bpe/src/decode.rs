//! From ids back to symbols.

use crate::batch;
use crate::error::Error;
use crate::segments::{Ragged, Segments};
use crate::vocabulary::Vocabulary;

/// Expands every sequence of ids; an id outside the vocabulary is refused with its position.
pub fn decode(vocabulary: &Vocabulary, ids: &Segments<'_, u32>, n_threads: usize, keep_going: &mut dyn FnMut() -> bool) -> Result<Ragged<u8>, Error> {
    let n_tokens = vocabulary.n_tokens();
    if let Some(at) = ids.values().iter().position(|&id| id as usize >= n_tokens) {
        return Err(Error::UnknownId { at, id: ids.values()[at], n_tokens });
    }
    let length: u64 = ids.values().iter().map(|&id| u64::from(vocabulary.token_length(id))).sum();
    let fits = usize::try_from(length).is_ok_and(|length| Vec::<u8>::new().try_reserve_exact(length).is_ok());
    if !fits {
        return Err(Error::OutputTooLong { length });
    }
    let make = || {
        |ids: &[u32], symbols: &mut Vec<u8>| {
            for &id in ids {
                symbols.extend_from_slice(vocabulary.token(id));
            }
        }
    };
    batch::for_each(ids, n_threads, 1, make, keep_going)
}
