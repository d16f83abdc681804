//! Python buffers in, bytearrays out.
//!
//! Inputs are copied once while the GIL is held: nothing that another thread writes can then reach a running call. One copy costs about a
//! hundredth of the work on it.

use pyo3::buffer::{Element, PyBuffer};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyByteArray;

/// A one-dimensional buffer of `T`, copied.
pub fn read<T: Element>(value: &Bound<'_, PyAny>, name: &str, kind: &str) -> PyResult<Vec<T>> {
    let refused =
        |what: String| PyTypeError::new_err(format!("{name}: a one-dimensional {kind} buffer is needed (numpy.ascontiguousarray(..., {kind})), {what}"));
    let buffer = PyBuffer::<T>::get(value).map_err(|error| refused(format!("got {}: {error}", value.get_type())))?;
    if buffer.dimensions() != 1 || !buffer.is_c_contiguous() {
        return Err(refused(format!("got {} dimensions{}", buffer.dimensions(), if buffer.is_c_contiguous() { "" } else { ", not contiguous" })));
    }
    buffer.to_vec(value.py())
}

/// Pairs of ids from an (M, 2) or flat uint32 buffer.
pub fn read_pairs(value: &Bound<'_, PyAny>) -> PyResult<Vec<(u32, u32)>> {
    let refused = |what: String| PyTypeError::new_err(format!("pairs: a contiguous (M, 2) uint32 buffer is needed, {what}"));
    let buffer = PyBuffer::<u32>::get(value).map_err(|error| refused(format!("got {}: {error}", value.get_type())))?;
    if !buffer.is_c_contiguous() || buffer.dimensions() != 2 || buffer.shape()[1] != 2 {
        return Err(refused(format!("got shape {:?}{}", buffer.shape(), if buffer.is_c_contiguous() { "" } else { ", not contiguous" })));
    }
    let flat = buffer.to_vec(value.py())?;
    Ok(flat.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

/// Whole, non-negative weights from any integer buffer, or from a float buffer of whole numbers.
pub fn read_weights(value: &Bound<'_, PyAny>) -> PyResult<Vec<u64>> {
    const KIND: &str = "uint64";
    if let Ok(weights) = read::<u64>(value, "weights", KIND) {
        return Ok(weights);
    }
    if let Ok(weights) = read::<i64>(value, "weights", KIND) {
        let whole = |(i, &weight): (usize, &i64)| {
            u64::try_from(weight).map_err(|_| PyValueError::new_err(format!("weights[{i}] is {weight}: weights must not be negative")))
        };
        return weights.iter().enumerate().map(whole).collect();
    }
    let weights = read::<f64>(value, "weights", KIND)?;
    let whole = |(i, &weight): (usize, &f64)| {
        if weight.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(&weight) {
            Ok(weight as u64)
        } else {
            Err(PyValueError::new_err(format!(
                "weights[{i}] is {weight}: counts are exact, so weights must be whole numbers from 0 to 2^53; scale and round them"
            )))
        }
    };
    weights.iter().enumerate().map(whole).collect()
}

/// A value with a fixed number of bytes in native order.
pub trait Plain: Copy {
    /// Appends the bytes at `to`.
    fn put(self, to: &mut [u8]);
}

macro_rules! plain {
    ($($kind:ty),*) => {$(
        impl Plain for $kind {
            #[inline]
            fn put(self, to: &mut [u8]) {
                to.copy_from_slice(&self.to_ne_bytes());
            }
        }
    )*};
}
plain!(u8, u32, u64, i64);

/// The values as a bytearray, which `numpy.frombuffer` takes without a copy.
pub fn write<'py, T: Plain>(py: Python<'py>, values: &[T]) -> PyResult<Bound<'py, PyByteArray>> {
    let size = size_of::<T>();
    PyByteArray::new_with(py, size_of_val(values), |bytes| {
        for (to, &value) in bytes.chunks_exact_mut(size).zip(values) {
            value.put(to);
        }
        Ok(())
    })
}
