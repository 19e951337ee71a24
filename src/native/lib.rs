//! `zander._native`: the only file that knows Python. `_native.pyi` is its manual.

mod frame;
mod raw;
mod reader;
mod record;
mod session;
mod text;

use std::cell::Cell;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use pyo3::buffer::{Element, PyBuffer};
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyInt, PyList, PyString};

use reader::Fed;
use session::{Run, SessionState};

#[pyclass]
struct FrameReader {
    #[pyo3(get)]
    stream: Py<PyAny>,
    #[pyo3(get)]
    user_id: Py<PyString>,
    session_id: Py<PyString>,
    session: Py<PyAny>,
    ring: Ring,
    reader: reader::Reader,
    template: record::Template,
    prefix: Vec<u8>,
    state: Option<SessionState>,
    is_stale: bool, // others may have moved what `state` and `ring.n_written` tell
    clock: Option<Py<PyAny>>,
    attachment: Option<Attachment>,
}

/// What `receive` asks, and whom it calls.
struct Attachment {
    closed: Py<PyAny>,
    waiting: Py<PyList>,
    schedule: Py<PyAny>,
    pass_on: Py<PyAny>,
}

/// A `ring.Ring`, which keeps its memory.
struct Ring {
    ring: Py<PyAny>,
    times_us: PyBuffer<i64>,
    samples: PyBuffer<f32>,
    n_written: usize,
}

#[pymethods]
impl FrameReader {
    #[new]
    #[pyo3(signature = (stream, clock=None))]
    fn new(py: Python<'_>, stream: Py<PyAny>, clock: Option<Py<PyAny>>) -> PyResult<Self> {
        let session = stream.getattr(py, "session")?;
        let origin = session.getattr(py, "origin")?;
        let session_id: Py<PyString> = session.getattr(py, "session_id")?.extract(py)?;
        let id = uuid(session_id.bind(py).to_str()?).ok_or_else(|| PyValueError::new_err("expected a UUID"))?;
        let user_id: Py<PyString> = session.getattr(py, "user_id")?.extract(py)?;
        let n_channels: usize = session.getattr(py, "n_channels")?.extract(py)?;
        let fence: i64 = session.getattr(py, "fence")?.extract(py)?;
        let period_us: f64 = origin.getattr(py, "period_us")?.extract(py)?;
        let prefix: String = origin.getattr(py, "prefix")?.extract(py)?;
        let ring = Ring::new(py, stream.getattr(py, "ring")?)?;
        let (session_text, user_text) = (session_id.bind(py).to_str()?, user_id.bind(py).to_str()?);
        Ok(Self {
            reader: reader::Reader::new(n_channels, period_us, ring.times_us.item_count()),
            template: record::Template::new(session_text, id, user_text, n_channels, fence),
            prefix: prefix.into_bytes(),
            session_id,
            session,
            stream,
            user_id,
            ring,
            state: None,
            is_stale: true,
            clock,
            attachment: None,
        })
    }

    fn attach(&mut self, closed: Py<PyAny>, waiting: Py<PyList>, schedule: Py<PyAny>, pass_on: Py<PyAny>) {
        self.attachment = Some(Attachment { closed, waiting, schedule, pass_on });
    }

    fn detach<'py>(&mut self, py: Python<'py>) -> Bound<'py, PyBytes> {
        self.attachment = None;
        PyBytes::new(py, &self.reader.take_kept())
    }

    fn receive(slf: &Bound<'_, Self>, data: &[u8]) -> PyResult<()> {
        let py = slf.py();
        let mut reader = slf.borrow_mut();
        let Some(attachment) = &reader.attachment else {
            return Err(PyValueError::new_err("expected a reader that is attached"));
        };
        let (waiting, schedule, pass_on) =
            (attachment.waiting.clone_ref(py), attachment.schedule.clone_ref(py), attachment.pass_on.clone_ref(py));
        let is_over = attachment.closed.call_method0(py, intern!(py, "done"))?.is_truthy(py)?;
        let waited = reader.has_samples();
        let passed = if is_over {
            reader.reader.keep(data);
            Some(PyBytes::new(py, b""))
        } else {
            reader.feed(py, data)?
        };
        let is_first = reader.has_samples() && !waited;
        drop(reader);
        if is_first {
            let waiting = waiting.bind(py);
            waiting.append(slf)?;
            if waiting.len() == 1 {
                schedule.call0(py)?;
            }
        }
        if let Some(passed) = passed {
            pass_on.call1(py, (passed,))?;
        }
        Ok(())
    }

    fn feed<'py>(&mut self, py: Python<'py>, data: &[u8]) -> PyResult<Option<Bound<'py, PyBytes>>> {
        if self.is_stale {
            self.look_up_session(py)?;
        }
        let now_us = match &self.clock {
            Some(clock) => clock.call0(py)?.extract(py)?,
            None => clock_us(),
        };
        let mut pass = Vec::new();
        Ok(match self.reader.feed(data, &mut self.state, now_us, &mut pass) {
            Fed::All => None,
            Fed::More => {
                self.is_stale = true;
                Some(PyBytes::new(py, &pass))
            }
        })
    }

    #[getter]
    fn has_samples(&self) -> bool {
        !self.reader.run.times_us.is_empty()
    }

    #[getter]
    fn position(&self) -> i64 {
        self.reader.run.position
    }

    #[getter]
    fn end(&self) -> i64 {
        self.reader.run.end()
    }

    #[getter]
    fn n_intercepted(&self) -> u64 {
        self.reader.n_intercepted
    }

    #[getter]
    fn n_passed(&self) -> (u64, u64, u64) {
        self.reader.n_passed.into()
    }

    fn write_direct<'py>(&self, py: Python<'py>, subscribers: &Bound<'py, PyAny>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let (mut frames, mut others) = (None, Vec::new());
        for subscriber in subscribers.try_iter()? {
            let subscriber = subscriber?;
            if !self.write_to(py, &subscriber, &mut frames)? {
                others.push(subscriber);
            }
        }
        Ok(others)
    }

    fn json<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        if self.reader.run.times_us.first().is_none_or(|&time_us| time_us < text::PLAIN_TIME_US) {
            return None;
        }
        let (mut scratch, mut out) = (Vec::new(), Vec::with_capacity(256 * self.reader.run.times_us.len()));
        text::write(&self.reader.run, &self.prefix, &mut scratch, &mut out);
        Some(PyBytes::new(py, &out))
    }

    fn samples<'py>(&self, py: Python<'py>) -> (Bound<'py, PyBytes>, Bound<'py, PyBytes>) {
        let run = &self.reader.run;
        let times: Vec<u8> = run.times_us.iter().flat_map(|time_us| time_us.to_ne_bytes()).collect();
        let values: Vec<u8> = run.values.iter().flat_map(|value| value.to_ne_bytes()).collect();
        (PyBytes::new(py, &times), PyBytes::new(py, &values))
    }

    fn advance_session(&mut self, py: Python<'_>) -> PyResult<()> {
        self.is_stale = true;
        self.move_session(py).map(drop)
    }
}

impl FrameReader {
    /// Write the samples past the queue of one subscriber, and move its cursor; false when it has to be offered them.
    fn write_to<'py>(
        &self,
        py: Python<'py>,
        subscriber: &Bound<'py, PyAny>,
        frames: &mut Option<Option<Bound<'py, PyBytes>>>, // made for the first who takes them
    ) -> PyResult<bool> {
        let through = subscriber.getattr(intern!(py, "through"))?;
        if through.is_none() {
            return Ok(false);
        }
        let (run, cursor) = (&self.reader.run, subscriber.getattr(intern!(py, "cursor"))?);
        let is_next = cursor.getattr(intern!(py, "position"))?.extract::<i64>()? == run.position
            && cursor.getattr(intern!(py, "session_id"))?.eq(&self.session_id)?;
        if !is_next {
            return Ok(false);
        }
        let frames = frames.get_or_insert_with(|| self.json(py)).as_ref();
        let Some(frames) = frames.filter(|frames| frames.as_bytes().len() <= MAX_THROUGH_BYTES) else {
            return Ok(false);
        };
        let is_written = through.call1((frames,))?.is_truthy()?;
        if is_written {
            cursor.setattr(intern!(py, "position"), run.end())?;
        }
        Ok(is_written)
    }

    /// Read the state of the session; None when what follows has to go by the twin.
    fn look_up_session(&mut self, py: Python<'_>) -> PyResult<()> {
        let (session, ring) = (self.session.bind(py), self.ring.ring.bind(py));
        let next_position = session.getattr(intern!(py, "next_position"))?.extract()?;
        let ring_end: Option<i64> = ring.getattr(intern!(py, "next_position"))?.extract()?;
        let is_lossless = self.stream.bind(py).getattr(intern!(py, "lost_from"))?.is_none();
        self.ring.n_written = ring.getattr(intern!(py, "n_written"))?.extract()?;
        self.state = if ring_end == Some(next_position) && is_lossless {
            let count = session.getattr(intern!(py, "count"))?.extract()?;
            let last_time_us = session.getattr(intern!(py, "last_time_us"))?.extract()?;
            Some(SessionState { next_position, count, last_time_us })
        } else {
            None
        };
        self.is_stale = false;
        Ok(())
    }

    /// Write the state to the session, and return its next position.
    fn move_session<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyInt>> {
        let state = self.state.ok_or_else(|| PyValueError::new_err("expected a reader that has samples"))?;
        let (session, position) = (self.session.bind(py), PyInt::new(py, state.next_position));
        session.setattr(intern!(py, "next_position"), &position)?;
        session.setattr(intern!(py, "count"), &position)?;
        session.setattr(intern!(py, "last_time_us"), state.last_time_us)?;
        Ok(position)
    }

    /// Write the run into the ring, and tell it and the session.
    fn commit(&mut self, py: Python<'_>) -> PyResult<()> {
        self.ring.write(py, &self.reader.run)?;
        let position = self.move_session(py)?;
        let ring = self.ring.ring.bind(py);
        ring.setattr(intern!(py, "n_written"), self.ring.n_written)?;
        ring.setattr(intern!(py, "next_position"), position)
    }
}

impl Ring {
    fn new(py: Python<'_>, ring: Py<PyAny>) -> PyResult<Self> {
        let times_us = PyBuffer::get(ring.getattr(py, "times_us")?.bind(py))?;
        let samples = PyBuffer::get(ring.getattr(py, "samples")?.bind(py))?;
        Ok(Self { ring, times_us, samples, n_written: 0 })
    }

    fn write(&mut self, py: Python<'_>, run: &Run) -> PyResult<()> {
        run.write(cells(&self.times_us, py)?, cells(&self.samples, py)?, self.n_written);
        self.n_written += run.times_us.len();
        Ok(())
    }
}

const MAX_THROUGH_BYTES: usize = 64 << 10; // past a queue at once: about what a transport buffers before it says stop
const WRITE_BYTES: usize = 1 << 20; // to the journal at once: its bound is looked at in between

#[pyfunction]
fn journal_frames<'py>(
    py: Python<'py>,
    readers: Vec<PyRefMut<'py, FrameReader>>,
) -> (Bound<'py, PyBytes>, usize, usize) {
    let mut out = Vec::with_capacity(256 * readers.len());
    let (mut n_samples, mut n_readers) = (0, 0);
    for mut reader in readers {
        if out.len() >= WRITE_BYTES {
            break;
        }
        let reader = &mut *reader;
        reader.template.write(&reader.reader.run, &mut out);
        n_samples += reader.reader.run.times_us.len();
        n_readers += 1;
    }
    (PyBytes::new(py, &out), n_samples, n_readers)
}

#[pyfunction]
fn split_frames<'py>(py: Python<'py>, data: &[u8], max_others: usize) -> PyResult<(Vec<Bound<'py, PyAny>>, usize)> {
    let (found, n_bytes) = record::split(data, max_others);
    let records = found.into_iter().map(|record| match record {
        record::Record::Other(payload) => Ok(PyBytes::new(py, payload).into_any()),
        record::Record::Raw(rows) => {
            let bytes = PyBytes::new_with(py, rows.n_bytes, |mut bytes| {
                for piece in &rows.pieces {
                    bytes.write_all(piece)?;
                }
                Ok(())
            })?;
            let fields = (rows.session_id, rows.fence, rows.position, rows.end, rows.last_us, bytes);
            Ok(fields.into_pyobject(py)?.into_any())
        }
    });
    Ok((records.collect::<PyResult<_>>()?, n_bytes))
}

#[pyfunction]
fn commit(py: Python<'_>, readers: Vec<PyRefMut<'_, FrameReader>>) -> PyResult<()> {
    readers.into_iter().try_for_each(|mut reader| reader.commit(py))
}

#[pyfunction]
fn clear(readers: Vec<PyRefMut<'_, FrameReader>>) {
    for mut reader in readers {
        reader.reader.run.clear();
    }
}

#[pyfunction]
fn sample_texts<'py>(
    py: Python<'py>,
    prefix: &str,
    position: i64,
    times_us: &Bound<'py, PyAny>,
    samples: &Bound<'py, PyAny>,
) -> PyResult<Option<Bound<'py, PyList>>> {
    let Some(run) = run(py, position, times_us, samples).filter(|run| run.times_us.iter().all(text::is_plain)) else {
        return Ok(None);
    };
    let (texts, mut text) = (PyList::empty(py), Vec::with_capacity(256));
    for i in 0..run.times_us.len() {
        text.clear();
        text::sample(&run, i, prefix.as_bytes(), &mut text);
        texts.append(PyString::from_bytes(py, &text)?)?;
    }
    Ok(Some(texts))
}

#[pyfunction]
fn chunk_text<'py>(
    py: Python<'py>,
    prefix: &str,
    position: i64,
    times_us: &Bound<'py, PyAny>,
    samples: &Bound<'py, PyAny>,
) -> PyResult<Option<Bound<'py, PyString>>> {
    let Some(run) = run(py, position, times_us, samples).filter(|run| text::is_plain(&run.times_us[0])) else {
        return Ok(None);
    };
    let mut text = Vec::with_capacity(128 + prefix.len() + 12 * run.values.len());
    text::chunk(&run, prefix.as_bytes(), &mut text);
    PyString::from_bytes(py, &text).map(Some)
}

/// Read numpy arrays of int64 `(n,)` and float32 `(n, n_channels)`, neither empty; None for anything else.
fn run(py: Python<'_>, position: i64, times_us: &Bound<'_, PyAny>, samples: &Bound<'_, PyAny>) -> Option<Run> {
    let (times_us, samples): (PyBuffer<i64>, PyBuffer<f32>) = (times_us.extract().ok()?, samples.extract().ok()?);
    let (n, n_values) = (times_us.item_count(), samples.item_count());
    let is_native = times_us.format().count_bytes() == 1 && samples.format().count_bytes() == 1; // PyO3 takes '>' too
    if !is_native || n_values == 0 || samples.shape() != [n, n_values / n.max(1)] || !samples.is_c_contiguous() {
        return None;
    }
    Some(Run { position, times_us: times_us.to_vec(py).ok()?, values: samples.to_vec(py).ok()? })
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
    module.add_class::<FrameReader>()?;
    module.add_function(wrap_pyfunction!(journal_frames, module)?)?;
    module.add_function(wrap_pyfunction!(split_frames, module)?)?;
    module.add_function(wrap_pyfunction!(commit, module)?)?;
    module.add_function(wrap_pyfunction!(clear, module)?)?;
    module.add_function(wrap_pyfunction!(sample_texts, module)?)?;
    module.add_function(wrap_pyfunction!(chunk_text, module)?)
}
