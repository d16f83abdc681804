//! `physio_bpe._core`: each function checks, releases the GIL, calls the pure crate and converts back.

mod buffers;

use std::sync::{Mutex, PoisonError};

use physio_bpe::{Encoder, Error, Mode, Progress, Ragged, Segments, Trained};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyByteArray;

type Two<'py> = (Bound<'py, PyByteArray>, Bound<'py, PyByteArray>);

fn value_error(error: Error) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// Runs `work` without the GIL. `Ctrl-C` and `check` are asked between its parts; the error that stopped it is the one raised.
fn detached<T: Send>(
    py: Python<'_>,
    check: impl Fn(Python<'_>, Option<Progress>) -> PyResult<()> + Sync,
    work: impl FnOnce(&mut dyn FnMut(Option<Progress>) -> bool) -> Result<T, Error> + Send,
) -> PyResult<T> {
    let mut stopped: Option<PyErr> = None;
    let done = py.detach(|| {
        work(&mut |progress| {
            let asked = Python::attach(|py| py.check_signals().and_then(|()| check(py, progress)));
            asked.map_err(|error| stopped.get_or_insert(error)).is_ok()
        })
    });
    match (done, stopped) {
        (_, Some(error)) => Err(error),
        (done, None) => done.map_err(value_error),
    }
}

fn threads(n_threads: usize) -> PyResult<usize> {
    if n_threads == 0 {
        return Err(PyValueError::new_err("n_threads is 0: give at least 1"));
    }
    Ok(n_threads)
}

fn train_on<'py>(py: Python<'py>, corpus: &Corpus, n_merges: usize, n_threads: usize, progress: Option<&Bound<'py, PyAny>>) -> PyResult<Two<'py>> {
    let n_threads = threads(n_threads)?;
    let progress = progress.map(|progress| progress.clone().unbind());
    let report = |py: Python<'_>, at: Option<Progress>| match (&progress, at) {
        (Some(progress), Some(at)) => progress.call1(py, (at.n_done, at.n_merges)).map(|_| ()),
        _ => Ok(()),
    };
    let trained: Trained = detached(py, report, |keep_going| {
        let segments = Segments::new(&corpus.symbols, &corpus.offsets)?;
        physio_bpe::train(&segments, corpus.weights.as_deref(), n_merges, n_threads, &mut |at| keep_going(Some(at)))
    })?;
    let flat: Vec<u32> = trained.pairs.iter().flat_map(|&(left, right)| [left, right]).collect();
    Ok((buffers::write(py, &flat)?, buffers::write(py, &trained.counts)?))
}

/// Sequences with their weights, one after the other.
#[derive(Default)]
struct Corpus {
    symbols: Vec<u8>,
    offsets: Vec<i64>,
    weights: Option<Vec<u64>>,
}

impl Corpus {
    fn read(segments: &Bound<'_, PyAny>, offsets: &Bound<'_, PyAny>, weights: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        let corpus = Self {
            symbols: buffers::read(segments, "segments", "uint8")?,
            offsets: buffers::read(offsets, "offsets", "int64")?,
            weights: weights.map(buffers::read_weights).transpose()?,
        };
        let n_segments = Segments::new(&corpus.symbols, &corpus.offsets).map_err(value_error)?.len();
        match &corpus.weights {
            Some(weights) if weights.len() != n_segments => Err(value_error(Error::WeightsLength { n_weights: weights.len(), n_segments })),
            _ => Ok(corpus),
        }
    }

    fn append(&mut self, more: &Self) {
        let (n_before, n_more) = (self.offsets.len().saturating_sub(1), more.offsets.len() - 1);
        let start = self.symbols.len() as i64;
        if self.offsets.is_empty() {
            self.offsets.push(0);
        }
        self.symbols.extend_from_slice(&more.symbols);
        self.offsets.extend(more.offsets[1..].iter().map(|end| start + end));
        if self.weights.is_some() || more.weights.is_some() {
            let weights = self.weights.get_or_insert_with(|| vec![1; n_before]);
            match &more.weights {
                Some(more) => weights.extend_from_slice(more),
                None => weights.resize(n_before + n_more, 1),
            }
        }
    }
}

/// Merges of one corpus in memory: (pairs, counts).
#[pyfunction]
#[pyo3(signature = (segments, offsets, n_merges, *, weights=None, n_threads=1, progress=None))]
fn train<'py>(
    segments: &Bound<'py, PyAny>,
    offsets: &Bound<'py, PyAny>,
    n_merges: usize,
    weights: Option<&Bound<'py, PyAny>>,
    n_threads: usize,
    progress: Option<&Bound<'py, PyAny>>,
) -> PyResult<Two<'py>> {
    train_on(segments.py(), &Corpus::read(segments, offsets, weights)?, n_merges, n_threads, progress)
}

/// Collects sequences piece by piece, then trains on all of them.
#[pyclass(frozen, module = "physio_bpe._core")]
struct Trainer {
    corpus: Mutex<Corpus>,
}

impl Trainer {
    /// Waits for the corpus without the GIL: another thread may hold it while it appends.
    fn with<T: Send>(&self, py: Python<'_>, work: impl FnOnce(&mut Corpus) -> T + Send) -> T {
        py.detach(|| work(&mut self.corpus.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

#[pymethods]
impl Trainer {
    #[new]
    fn new() -> Self {
        Self { corpus: Mutex::new(Corpus { offsets: vec![0], ..Corpus::default() }) }
    }

    /// Adds sequences; without weights each counts once.
    #[pyo3(signature = (segments, offsets, weights=None))]
    fn push(&self, segments: &Bound<'_, PyAny>, offsets: &Bound<'_, PyAny>, weights: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let more = Corpus::read(segments, offsets, weights)?;
        self.with(segments.py(), |corpus| corpus.append(&more));
        Ok(())
    }

    /// Merges of all that was pushed: (pairs, counts).
    #[pyo3(signature = (n_merges, n_threads=1, progress=None))]
    fn train<'py>(&self, py: Python<'py>, n_merges: usize, n_threads: usize, progress: Option<&Bound<'py, PyAny>>) -> PyResult<Two<'py>> {
        let corpus = self.with(py, std::mem::take);
        train_on(py, &corpus, n_merges, n_threads, progress)
    }

    /// Symbols pushed so far.
    #[getter]
    fn n_symbols(&self, py: Python<'_>) -> usize {
        self.with(py, |corpus| corpus.symbols.len())
    }

    /// Sequences pushed so far.
    #[getter]
    fn n_segments(&self, py: Python<'_>) -> usize {
        self.with(py, |corpus| corpus.offsets.len().saturating_sub(1))
    }
}

/// The tokens of a list of merges, with both encoders.
#[pyclass(frozen, module = "physio_bpe._core")]
struct Vocabulary {
    encoder: Encoder,
}

impl Vocabulary {
    fn encode<'py>(&self, symbols: &Bound<'py, PyAny>, offsets: &Bound<'py, PyAny>, mode: Mode, n_threads: usize) -> PyResult<Two<'py>> {
        let py = symbols.py();
        let n_threads = threads(n_threads)?;
        let (symbols, offsets) = (buffers::read::<u8>(symbols, "symbols", "uint8")?, buffers::read::<i64>(offsets, "offsets", "int64")?);
        let out: Ragged<u32> =
            detached(py, |_, _| Ok(()), |keep_going| self.encoder.encode(&Segments::new(&symbols, &offsets)?, mode, n_threads, &mut || keep_going(None)))?;
        Ok((buffers::write(py, &out.values)?, buffers::write(py, &out.offsets)?))
    }
}

#[pymethods]
impl Vocabulary {
    /// `pairs[i]` are the two earlier ids that token `256 + i` joins.
    #[new]
    fn new(pairs: &Bound<'_, PyAny>) -> PyResult<Self> {
        let merges = buffers::read_pairs(pairs)?;
        let vocabulary = pairs.py().detach(|| physio_bpe::Vocabulary::new(merges)).map_err(value_error)?;
        Ok(Self { encoder: Encoder::new(vocabulary) })
    }

    /// Ids by rank-order merging: (ids, offsets).
    #[pyo3(signature = (symbols, offsets, n_threads=1))]
    fn encode_bpe<'py>(&self, symbols: &Bound<'py, PyAny>, offsets: &Bound<'py, PyAny>, n_threads: usize) -> PyResult<Two<'py>> {
        self.encode(symbols, offsets, Mode::Rank, n_threads)
    }

    /// Ids by greedy longest match: (ids, offsets).
    #[pyo3(signature = (symbols, offsets, n_threads=1))]
    fn encode_longest<'py>(&self, symbols: &Bound<'py, PyAny>, offsets: &Bound<'py, PyAny>, n_threads: usize) -> PyResult<Two<'py>> {
        self.encode(symbols, offsets, Mode::Longest, n_threads)
    }

    /// Symbols of the ids: (symbols, offsets).
    #[pyo3(signature = (ids, offsets, n_threads=1))]
    fn decode<'py>(&self, ids: &Bound<'py, PyAny>, offsets: &Bound<'py, PyAny>, n_threads: usize) -> PyResult<Two<'py>> {
        let py = ids.py();
        let n_threads = threads(n_threads)?;
        let (ids, offsets) = (buffers::read::<u32>(ids, "ids", "uint32")?, buffers::read::<i64>(offsets, "offsets", "int64")?);
        let vocabulary = self.encoder.vocabulary();
        let out =
            detached(py, |_, _| Ok(()), |keep_going| physio_bpe::decode(vocabulary, &Segments::new(&ids, &offsets)?, n_threads, &mut || keep_going(None)))?;
        Ok((buffers::write(py, &out.values)?, buffers::write(py, &out.offsets)?))
    }

    /// Symbols per token, uint32.
    fn lengths<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyByteArray>> {
        let vocabulary = self.encoder.vocabulary();
        let lengths: Vec<u32> = (0..vocabulary.n_tokens() as u32).map(|id| vocabulary.token_length(id)).collect();
        buffers::write(py, &lengths)
    }

    /// Symbols of one token.
    fn token_bytes(&self, id: u32) -> PyResult<&[u8]> {
        let vocabulary = self.encoder.vocabulary();
        if id as usize >= vocabulary.n_tokens() {
            return Err(PyValueError::new_err(format!("id is {id}: the vocabulary has ids 0 to {}", vocabulary.n_tokens() - 1)));
        }
        Ok(vocabulary.token(id))
    }

    /// The merges, uint32 pairs.
    fn pairs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyByteArray>> {
        let flat: Vec<u32> = self.encoder.vocabulary().pairs().iter().flat_map(|&(left, right)| [left, right]).collect();
        buffers::write(py, &flat)
    }

    /// Tokens, the 256 single symbols included.
    #[getter]
    fn n_tokens(&self) -> usize {
        self.encoder.vocabulary().n_tokens()
    }

    /// Tokens whose own string rank-order merging encodes otherwise: `encode_bpe` never gives them. 0 for a trained vocabulary.
    #[getter]
    fn n_unreachable(&self) -> usize {
        let vocabulary = self.encoder.vocabulary();
        (0..vocabulary.n_tokens() as u32).filter(|&id| !vocabulary.is_reachable(id)).count()
    }
}

/// The native part of physio-bpe.
#[pymodule]
fn _core(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Trainer>()?;
    m.add_class::<Vocabulary>()?;
    m.add_function(wrap_pyfunction!(train, m)?)
}
