//! `zander._native`: the only file that knows Python. `_native.pyi` is its manual.

mod frame;
mod lane;
mod raw;
mod record;
mod session;
mod text;

use std::cell::Cell;
use std::time::{SystemTime, UNIX_EPOCH};

use pyo3::buffer::{Element, PyBuffer};
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use lane::Fed;
use session::Stand;

#[pyclass]
struct Lane {
    #[pyo3(get)]
    stream: Py<PyAny>,
    session: Py<PyAny>,
    lane: lane::Lane,
    template: record::Template,
    prefix: Vec<u8>,
    stand: Option<Stand>, // of the samples that wait; None while there are none
}

#[pymethods]
impl Lane {
    #[new]
    fn new(py: Python<'_>, stream: Py<PyAny>) -> PyResult<Self> {
        let session = stream.getattr(py, intern!(py, "session"))?;
        let origin = session.getattr(py, intern!(py, "origin"))?;
        let session_id: String = session.getattr(py, intern!(py, "session_id"))?.extract(py)?;
        let user_id: String = session.getattr(py, intern!(py, "user_id"))?.extract(py)?;
        let n_channels: usize = session.getattr(py, intern!(py, "n_channels"))?.extract(py)?;
        let fence: i64 = session.getattr(py, intern!(py, "fence"))?.extract(py)?;
        let period_us: f64 = origin.getattr(py, intern!(py, "period_us"))?.extract(py)?;
        let prefix: String = origin.getattr(py, intern!(py, "prefix"))?.extract(py)?;
        let capacity: usize = stream.getattr(py, "ring")?.getattr(py, "capacity")?.extract(py)?;
        let id = uuid(&session_id).ok_or_else(|| PyValueError::new_err("expected a UUID"))?;
        Ok(Self {
            lane: lane::Lane::new(n_channels, period_us, capacity),
            template: record::Template::new(&session_id, id, &user_id, n_channels, fence),
            prefix: prefix.into_bytes(),
            session,
            stream,
            stand: None,
        })
    }

    #[pyo3(signature = (data, now_us=None))]
    fn feed<'py>(
        &mut self,
        py: Python<'py>,
        data: &[u8],
        now_us: Option<i64>,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let mut stand = match self.stand {
            Some(stand) => Some(stand),
            None => self.find(py)?,
        };
        let n_before = self.lane.run.times_us.len();
        let mut pass = Vec::new();
        let fed = self.lane.feed(data, &mut stand, now_us.unwrap_or_else(clock_us), &mut pass);
        if self.lane.run.times_us.len() > n_before {
            self.stand = stand;
        }
        Ok(match fed {
            Fed::All => None,
            Fed::More => Some(PyBytes::new(py, &pass)),
        })
    }

    fn take_kept<'py>(&mut self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.lane.take_kept())
    }

    #[getter]
    fn waits(&self) -> bool {
        self.stand.is_some()
    }

    #[getter]
    fn position(&self) -> i64 {
        self.lane.run.position
    }

    #[getter]
    fn end(&self) -> i64 {
        self.lane.run.end()
    }

    #[getter]
    fn n_peeled(&self) -> u64 {
        self.lane.n_peeled
    }

    #[getter]
    fn n_passed(&self) -> (u64, u64, u64) {
        self.lane.n_passed.into()
    }

    fn json<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        if self.lane.run.times_us.first().is_none_or(|&time_us| time_us < text::PLAIN_TIME_US) {
            return None;
        }
        let (mut scratch, mut out) = (Vec::new(), Vec::with_capacity(256 * self.lane.run.times_us.len()));
        text::write(&self.lane.run, &self.prefix, &mut scratch, &mut out);
        Some(PyBytes::new(py, &out))
    }

    fn samples<'py>(&self, py: Python<'py>) -> (Bound<'py, PyBytes>, Bound<'py, PyBytes>) {
        let run = &self.lane.run;
        let times: Vec<u8> = run.times_us.iter().flat_map(|time_us| time_us.to_ne_bytes()).collect();
        let values: Vec<u8> = run.values.iter().flat_map(|value| value.to_ne_bytes()).collect();
        (PyBytes::new(py, &times), PyBytes::new(py, &values))
    }

    fn settle(&self, py: Python<'_>) -> PyResult<()> {
        let Some(stand) = self.stand else { return Ok(()) };
        let session = self.session.bind(py);
        session.setattr(intern!(py, "next_position"), stand.next_position)?;
        session.setattr(intern!(py, "count"), stand.count)?;
        session.setattr(intern!(py, "last_time_us"), stand.last_time_us)
    }

    fn clear(&mut self) {
        self.lane.run.clear();
        self.stand = None;
    }
}

impl Lane {
    /// Where the session stands; None when what follows has to go by the twin.
    fn find(&self, py: Python<'_>) -> PyResult<Option<Stand>> {
        let (session, stream) = (self.session.bind(py), self.stream.bind(py));
        let next_position = session.getattr(intern!(py, "next_position"))?.extract()?;
        let ring = stream.getattr(intern!(py, "ring"))?;
        let ring_end: Option<i64> = ring.getattr(intern!(py, "next_position"))?.extract()?;
        if ring_end != Some(next_position) || !stream.getattr(intern!(py, "lost_from"))?.is_none() {
            return Ok(None);
        }
        Ok(Some(Stand {
            next_position,
            count: session.getattr(intern!(py, "count"))?.extract()?,
            last_time_us: session.getattr(intern!(py, "last_time_us"))?.extract()?,
        }))
    }

    /// Write the run into the ring.
    fn write(&self, py: Python<'_>) -> PyResult<()> {
        let ring = self.stream.bind(py).getattr(intern!(py, "ring"))?;
        let times: PyBuffer<i64> = PyBuffer::get(&ring.getattr(intern!(py, "times_us"))?)?;
        let values: PyBuffer<f32> = PyBuffer::get(&ring.getattr(intern!(py, "samples"))?)?;
        let n_written: usize = ring.getattr(intern!(py, "n_written"))?.extract()?;
        let (times_us, samples) = (cells(&times, py)?, cells(&values, py)?);
        let (run, n_channels, capacity) = (&self.lane.run, self.lane.n_channels, times_us.len());
        for (i, (&time_us, row)) in run.times_us.iter().zip(run.values.chunks_exact(n_channels)).enumerate() {
            let at = (n_written + i) % capacity;
            times_us[at].set(time_us);
            for (cell, &value) in samples[at * n_channels..].iter().zip(row) {
                cell.set(value);
            }
        }
        ring.setattr(intern!(py, "n_written"), n_written + run.times_us.len())?;
        ring.setattr(intern!(py, "next_position"), run.end())
    }
}

const WRITE_BYTES: usize = 1 << 20; // to the journal at once: its bound is looked at in between

#[pyfunction]
fn journal_frames<'py>(py: Python<'py>, lanes: Vec<PyRefMut<'py, Lane>>) -> (Bound<'py, PyBytes>, usize, usize) {
    let mut out = Vec::with_capacity(256 * lanes.len());
    let (mut n_samples, mut n_lanes) = (0, 0);
    for mut lane in lanes {
        if out.len() >= WRITE_BYTES {
            break;
        }
        let lane = &mut *lane;
        lane.template.write(&lane.lane.run, &mut out);
        n_samples += lane.lane.run.times_us.len();
        n_lanes += 1;
    }
    (PyBytes::new(py, &out), n_samples, n_lanes)
}

type Joined<'py> = (String, u64, u64, u64, u64, Bound<'py, PyBytes>);

#[pyfunction]
fn join_frames<'py>(py: Python<'py>, frames: &[u8]) -> PyResult<Vec<Joined<'py>>> {
    let found = record::join(frames).ok_or_else(|| PyValueError::new_err("expected frames of raw records"))?;
    let joined = |rows: record::Rows| {
        let (session_id, bytes) = (rows.session_id.to_owned(), PyBytes::new(py, &rows.rows));
        (session_id, rows.fence, rows.position, rows.end, rows.last_us, bytes)
    };
    Ok(found.into_iter().map(joined).collect())
}

#[pyfunction]
fn commit(py: Python<'_>, lanes: Vec<PyRef<'_, Lane>>) -> PyResult<()> {
    lanes.iter().try_for_each(|lane| {
        lane.settle(py)?;
        lane.write(py)
    })
}

/// The memory of a numpy array, to write to: a slice of it, made in Python for every write, costs five times as much.
#[allow(unsafe_code)]
fn cells<'a, T: Element>(array: &'a PyBuffer<T>, _: Python<'a>) -> PyResult<&'a [Cell<T>]> {
    let memory = array.as_slice_ptr().filter(|_| !array.readonly());
    let memory = memory.ok_or_else(|| PyValueError::new_err("expected a contiguous array that may be written to"))?;
    // SAFETY: the buffer keeps the memory alive and checked its type; whoever else has it needs the interpreter, which
    // is ours while `'a` lasts, and a Cell promises nothing about who else has it.
    Ok(unsafe { &*(memory.as_ptr() as *const [Cell<T>]) })
}

fn clock_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}

fn uuid(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.chars().filter(|&letter| letter != '-').collect();
    u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32).map(u128::to_be_bytes)
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("DEBUG", cfg!(debug_assertions))?;
    module.add_class::<Lane>()?;
    module.add_function(wrap_pyfunction!(journal_frames, module)?)?;
    module.add_function(wrap_pyfunction!(join_frames, module)?)?;
    module.add_function(wrap_pyfunction!(commit, module)?)
}
