//! `Intake`: the samples of all relays in one turn, into the journal, the rings and to those consumers who keep up.

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
    n_clamped: usize,
    #[pyo3(get)]
    n_given: usize,
}

#[pymethods]
impl Intake {
    #[new]
    fn new(record: Py<PyAny>, refuse: Py<PyAny>, offer: Py<PyAny>, live: Py<PyDict>, followers: Py<PyDict>) -> Self {
        Self { record, refuse, offer, live, followers, n_samples: 0, n_clamped: 0, n_given: 0 }
    }

    pub fn take(slf: &Bound<'_, Self>, readers: Vec<Py<FrameReader>>) -> PyResult<()> {
        let (py, mut rest, mut result) = (slf.py(), &readers[..], Ok(()));
        while !rest.is_empty() {
            let (frames, n_samples, sizes) = journal_frames(py, rest);
            let (batch, behind) = rest.split_at(sizes.len());
            rest = behind;
            slf.borrow_mut().n_clamped +=
                batch.iter().map(|reader| reader.borrow(py).reader.run.n_clamped).sum::<usize>();
            let taken = Self::take_batch(slf, batch, &frames, n_samples, &sizes);
            batch.iter().for_each(|reader| reader.borrow_mut(py).reader.run.clear());
            result = result.and(taken);
        }
        result
    }
}

impl Intake {
    fn take_batch(
        slf: &Bound<'_, Self>,
        readers: &[Py<FrameReader>],
        frames: &[u8],
        n_samples: usize,
        sizes: &[usize],
    ) -> PyResult<()> {
        let (py, intake, frames) = (slf.py(), slf.borrow(), PyBytes::new(slf.py(), frames));
        let mut taken = intake.record.call1(py, (&frames, n_samples))?;
        if taken.is_none(py) {
            let users = readers.iter().map(|reader| reader.borrow(py).user_id(py)).collect::<PyResult<Vec<_>>>()?;
            let sizes: Vec<_> = users.into_iter().zip(sizes).collect();
            taken = intake.record.call1(py, (&frames, n_samples, sizes))?;
        }
        if !taken.is_truthy(py)? {
            return readers.iter().try_for_each(|reader| intake.refuse.call1(py, (reader,)).map(drop));
        }
        let (mut n_given, mut result) = (0, Ok(()));
        for reader in readers {
            match intake.take_one(py, reader) {
                Ok(n) => n_given += n,
                Err(error) => result = result.and(Err(error)), // of one must not hold up the others
            }
        }
        drop(intake);
        let mut intake = slf.borrow_mut();
        intake.n_samples += n_samples;
        intake.n_given += n_given;
        result
    }

    /// Write the samples of a reader to its ring and to consumers; who cannot be written to is offered them. Return how
    /// many all consumers are given.
    fn take_one(&self, py: Python<'_>, reader: &Py<FrameReader>) -> PyResult<usize> {
        reader.borrow_mut(py).commit(py)?;
        let (samples, mut frames, mut others, mut n_given) = (reader.borrow(py), None, Vec::new(), 0);
        let (user_id, followers) = (samples.user_id(py)?, self.followers.bind(py));
        if !followers.is_empty() {
            others.extend(followers.get_item(&user_id)?);
        }
        if let Some(consumers) = self.live.bind(py).get_item(&user_id)? {
            let consumers: Vec<Bound<'_, PyAny>> = consumers.try_iter()?.collect::<PyResult<_>>()?;
            n_given = consumers.len() * samples.reader.run.times_us.len();
            for consumer in consumers {
                if !samples.write_to(py, &consumer, &mut frames)? {
                    others.push(consumer);
                }
            }
        }
        drop(samples);
        if !others.is_empty() {
            self.offer.call1(py, (reader, others))?;
        }
        Ok(n_given)
    }
}

/// Write the samples of each reader as a frame of the journal, up to about `WRITE_BYTES`, at least one; return how many
/// samples they hold, and how many bytes the frame of each takes.
fn journal_frames(py: Python<'_>, readers: &[Py<FrameReader>]) -> (Vec<u8>, usize, Vec<usize>) {
    let mut out = Vec::with_capacity(256 * readers.len());
    let (mut n_samples, mut sizes) = (0, Vec::with_capacity(readers.len()));
    for reader in readers {
        if out.len() >= WRITE_BYTES {
            break;
        }
        let start = out.len();
        n_samples += reader.borrow_mut(py).write_record(&mut out);
        sizes.push(out.len() - start);
    }
    (out, n_samples, sizes)
}

/// Let the samples of readers be taken in; all have the same intake.
pub fn take(py: Python<'_>, readers: Vec<Py<FrameReader>>) -> PyResult<()> {
    let Some(first) = readers.first() else { return Ok(()) };
    let intake = first.borrow(py).intake(py)?;
    Intake::take(intake.bind(py), readers)
}
