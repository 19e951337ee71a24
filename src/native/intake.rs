//! `Intake`: the samples of all relays in one turn, into the journal, the rings and to those consumers who keep up.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::FrameReader;

const WRITE_BYTES: usize = 1 << 20; // to the journal at once: its bound is looked at in between

#[pyclass]
pub struct Intake {
    record: Py<PyAny>,
    refuse: Py<PyAny>,
    offer: Py<PyAny>,
    live: Py<PyDict>,
    followers: Py<PyDict>,
    #[pyo3(get)]
    n_samples: usize,
    #[pyo3(get)]
    n_given: usize,
}

#[pymethods]
impl Intake {
    #[new]
    fn new(record: Py<PyAny>, refuse: Py<PyAny>, offer: Py<PyAny>, live: Py<PyDict>, followers: Py<PyDict>) -> Self {
        Self { record, refuse, offer, live, followers, n_samples: 0, n_given: 0 }
    }

    pub fn take(slf: &Bound<'_, Self>, readers: Vec<Py<FrameReader>>) -> PyResult<()> {
        let (py, mut rest, mut result) = (slf.py(), &readers[..], Ok(()));
        while !rest.is_empty() {
            let (frames, n_samples, n_readers) = journal_frames(py, rest);
            let (batch, behind) = rest.split_at(n_readers);
            rest = behind;
            let taken = Self::take_batch(slf, batch, &frames, n_samples);
            batch.iter().for_each(|reader| reader.borrow_mut(py).reader.run.clear());
            result = result.and(taken);
        }
        result
    }
}

impl Intake {
    fn take_batch(slf: &Bound<'_, Self>, readers: &[Py<FrameReader>], frames: &[u8], n_samples: usize) -> PyResult<()> {
        let (py, intake) = (slf.py(), slf.borrow());
        if !intake.record.call1(py, (PyBytes::new(py, frames), n_samples))?.is_truthy(py)? {
            return readers.iter().try_for_each(|reader| intake.refuse.call1(py, (reader,)).map(drop));
        }
        let (mut n_given, mut others) = (0, Vec::new());
        for reader in readers {
            reader.borrow_mut(py).commit(py)?;
        }
        for reader in readers {
            n_given += intake.give(py, reader, &mut others)?;
            if !others.is_empty() {
                intake.offer.call1(py, (reader, std::mem::take(&mut others)))?;
            }
        }
        drop(intake);
        let mut intake = slf.borrow_mut();
        intake.n_samples += n_samples;
        intake.n_given += n_given;
        Ok(())
    }

    /// Write the samples of a reader to consumers; `others` has to be offered them. Return how many are given to all.
    fn give<'py>(
        &self,
        py: Python<'py>,
        reader: &Py<FrameReader>,
        others: &mut Vec<Bound<'py, PyAny>>,
    ) -> PyResult<usize> {
        let (reader, mut frames) = (reader.borrow(py), None);
        let user_id = reader.user(py)?;
        let followers = self.followers.bind(py);
        if !followers.is_empty() {
            others.extend(followers.get_item(&user_id)?);
        }
        let Some(consumers) = self.live.bind(py).get_item(&user_id)? else { return Ok(0) };
        let consumers: Vec<Bound<'py, PyAny>> = consumers.try_iter()?.collect::<PyResult<_>>()?;
        let n_given = consumers.len() * reader.reader.run.times_us.len();
        for consumer in consumers {
            if !reader.write_to(py, &consumer, &mut frames)? {
                others.push(consumer);
            }
        }
        Ok(n_given)
    }
}

/// Write the samples of each reader as a frame of the journal, up to about `WRITE_BYTES`, at least one; return how many
/// samples they hold, and of how many readers they are.
pub fn journal_frames(py: Python<'_>, readers: &[Py<FrameReader>]) -> (Vec<u8>, usize, usize) {
    let mut out = Vec::with_capacity(256 * readers.len());
    let (mut n_samples, mut n_readers) = (0, 0);
    for reader in readers {
        if out.len() >= WRITE_BYTES {
            break;
        }
        n_samples += reader.borrow_mut(py).write_record(&mut out);
        n_readers += 1;
    }
    (out, n_samples, n_readers)
}

/// Let the samples of readers be taken in; all have the same intake.
pub fn take(py: Python<'_>, readers: Vec<Py<FrameReader>>) -> PyResult<()> {
    let Some(first) = readers.first() else { return Ok(()) };
    let intake = first.borrow(py).intake(py)?;
    Intake::take(intake.bind(py), readers)
}

/// Move a subscriber's cursor behind samples that were written to it.
pub fn advance(py: Python<'_>, cursor: &Bound<'_, PyAny>, position: i64) -> PyResult<()> {
    cursor.call_method1(intern!(py, "advance"), (position,)).map(drop)
}
