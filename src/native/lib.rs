//! `zander._native`: with `reactor.rs`, `transport.rs` and `intake.rs` what knows Python. `_native.pyi` is its manual.

mod frame;
mod intake;
mod positions;
mod raw;
mod reactor;
mod reader;
mod record;
mod session;
mod stream;
mod text;
mod transport;

use std::cell::Cell;
use std::io::Write;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use pyo3::buffer::{Element, PyBuffer};
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString};

use intake::Intake;
use positions::{CursorPosition, RingPosition, SessionPosition, Shortcut};
use reactor::Reactor;
use reader::Fed;
use session::{Rules, Run, SessionState};
use transport::Socket;

#[pyclass]
pub struct FrameReader {
    reader: reader::Reader,
    clock: Option<Py<PyAny>>,
    relay: Option<Relay>, // whose samples are taken
}

/// The session of a relay, as far as it is needed for samples that simply follow.
struct Relay {
    stream: Py<PyAny>,
    session: Py<SessionPosition>,
    user_id: Py<PyString>,
    session_id: Py<PyString>,
    ring: Option<Ring>, // made with the first sample, which the twin takes in
    template: record::Template,
    prefix: Vec<u8>,
    state: Option<SessionState>,
    is_stale: bool, // others may have moved what `state` and `ring.n_written` tell
    closed: Option<Py<PyAny>>,
    intake: Option<Py<Intake>>,
}

/// A `ring.Ring`, which keeps its memory.
struct Ring {
    position: Py<RingPosition>,
    times_us: PyBuffer<i64>,
    samples: PyBuffer<f32>,
}

#[pymethods]
impl FrameReader {
    #[new]
    #[pyo3(signature = (clock=None))]
    fn new(clock: Option<Py<PyAny>>) -> Self {
        Self { reader: reader::Reader::default(), clock, relay: None }
    }

    #[pyo3(signature = (stream, closed=None, intake=None))]
    fn intercept(
        &mut self,
        py: Python<'_>,
        stream: Py<PyAny>,
        closed: Option<Py<PyAny>>,
        intake: Option<Py<Intake>>,
    ) -> PyResult<()> {
        let relay = Relay::new(py, stream, closed, intake)?;
        let session = relay.stream.bind(py).getattr("session")?;
        let rules = Rules {
            period_us: session.getattr("origin")?.getattr("period_us")?.extract()?,
            max_age_us: session.getattr("max_age_us")?.extract()?,
        };
        let n_channels = session.getattr("n_channels")?.extract()?;
        let capacity = relay.stream.bind(py).getattr("ring")?.getattr("capacity")?.extract()?;
        self.reader.layout = Some(reader::Layout::new(n_channels, rules, capacity));
        self.relay = Some(relay);
        Ok(())
    }

    fn stop(&mut self) {
        self.reader.layout = None;
        self.relay = None;
    }

    #[getter]
    fn stream(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(self.relay()?.stream.clone_ref(py))
    }

    #[getter]
    fn user_id(&self, py: Python<'_>) -> PyResult<Py<PyString>> {
        Ok(self.relay()?.user_id.clone_ref(py))
    }

    fn feed<'py>(&mut self, py: Python<'py>, data: &[u8]) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let (mut pass, mut state) = (Vec::new(), None);
        if let Some(relay) = &mut self.relay {
            if relay.is_stale {
                relay.look_up(py)?;
            }
            state = relay.state;
        }
        let now_us = match &self.clock {
            Some(clock) => clock.call0(py)?.extract(py)?,
            None => clock_us(),
        };
        let fed = self.reader.feed(data, &mut state, now_us, &mut pass);
        if let Some(relay) = &mut self.relay {
            relay.state = state;
            relay.is_stale = matches!(fed, Fed::More);
        }
        Ok(match fed {
            Fed::All => None,
            Fed::More => Some(PyBytes::new(py, &pass)),
        })
    }

    #[getter]
    fn is_intercepting(&self) -> bool {
        self.relay.is_some()
    }

    #[getter]
    fn is_between_messages(&self) -> bool {
        self.reader.is_between_messages()
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

    fn json<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        self.write_json().map(|out| PyBytes::new(py, &out))
    }

    fn samples<'py>(&self, py: Python<'py>) -> (Bound<'py, PyBytes>, Bound<'py, PyBytes>) {
        let run = &self.reader.run;
        let times: Vec<u8> = run.times_us.iter().flat_map(|time_us| time_us.to_ne_bytes()).collect();
        let values: Vec<u8> = run.values.iter().flat_map(|value| value.to_ne_bytes()).collect();
        (PyBytes::new(py, &times), PyBytes::new(py, &values))
    }

    fn advance_session(&mut self, py: Python<'_>) -> PyResult<()> {
        let relay = self.relay.as_mut().ok_or_else(no_relay)?;
        relay.is_stale = true;
        relay.advance(py, self.reader.run.n_clamped)
    }
}

impl FrameReader {
    fn relay(&self) -> PyResult<&Relay> {
        self.relay.as_ref().ok_or_else(no_relay)
    }

    /// Feed what a socket has received; of a relay that is to be closed nothing counts any more.
    fn receive<'py>(&mut self, py: Python<'py>, data: &[u8]) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let closed = self.relay.as_ref().and_then(|relay| relay.closed.as_ref());
        if closed.map_or(Ok(false), |closed| closed.call_method0(py, intern!(py, "done"))?.is_truthy(py))? {
            self.stop();
        }
        self.feed(py, data)
    }

    fn write_json(&self) -> Option<Vec<u8>> {
        if self.reader.run.times_us.first().is_none_or(|&time_us| time_us < text::PLAIN_TIME_US) {
            return None;
        }
        let (mut scratch, mut out) = (Vec::new(), Vec::with_capacity(256 * self.reader.run.times_us.len()));
        text::write(&self.reader.run, &self.relay.as_ref()?.prefix, &mut scratch, &mut out);
        Some(out)
    }

    /// Where the samples go.
    fn intake(&self, py: Python<'_>) -> PyResult<Py<Intake>> {
        self.relay()?.intake.as_ref().map(|intake| intake.clone_ref(py)).ok_or_else(no_relay)
    }

    /// Write the samples as a frame of the journal; return how many.
    fn write_record(&mut self, out: &mut Vec<u8>) -> usize {
        if let Some(relay) = &mut self.relay {
            relay.template.write(&self.reader.run, out);
        }
        self.reader.run.times_us.len()
    }

    /// Write the samples past the queue of one subscriber, and move its cursor; false when it has to be offered them.
    fn write_to(
        &self,
        py: Python<'_>,
        subscriber: &Bound<'_, PyAny>,
        frames: &mut Option<Option<Vec<u8>>>, // made for the first who takes them
    ) -> PyResult<bool> {
        let (run, session_id) = (&self.reader.run, self.relay()?.session_id.bind(py));
        let Ok(shortcut) = subscriber.cast::<Shortcut>() else { return Ok(false) };
        let Some(socket) = shortcut.borrow().socket_at(py, session_id, run.position) else { return Ok(false) };
        let frames = frames.get_or_insert_with(|| self.write_json()).as_ref();
        let Some(frames) = frames.filter(|frames| frames.len() <= MAX_THROUGH_BYTES) else { return Ok(false) };
        let is_written = Socket::write_now(socket.bind(py), frames)?;
        if is_written {
            shortcut.borrow().cursor.borrow_mut(py).position = run.end();
        }
        Ok(is_written)
    }

    /// Write the run into the ring, and tell it and the session.
    fn commit(&mut self, py: Python<'_>) -> PyResult<()> {
        let relay = self.relay.as_mut().ok_or_else(no_relay)?;
        relay.ring.as_ref().ok_or_else(no_relay)?.write(py, &self.reader.run)?;
        relay.advance(py, self.reader.run.n_clamped)
    }
}

impl Relay {
    fn new(py: Python<'_>, stream: Py<PyAny>, closed: Option<Py<PyAny>>, intake: Option<Py<Intake>>) -> PyResult<Self> {
        let session = stream.getattr(py, "session")?;
        let origin = session.getattr(py, "origin")?;
        let position = session.extract(py)?;
        let session_id: Py<PyString> = session.getattr(py, "session_id")?.extract(py)?;
        let session_text = session_id.bind(py).to_str()?;
        let id = uuid(session_text).ok_or_else(|| PyValueError::new_err("expected a UUID"))?;
        let user_id: Py<PyString> = session.getattr(py, "user_id")?.extract(py)?;
        let n_channels: usize = session.getattr(py, "n_channels")?.extract(py)?;
        let fence: i64 = session.getattr(py, "fence")?.extract(py)?;
        let prefix: String = origin.getattr(py, "prefix")?.extract(py)?;
        Ok(Self {
            template: record::Template::new(session_text, id, user_id.bind(py).to_str()?, n_channels, fence),
            ring: None,
            prefix: prefix.into_bytes(),
            session: position,
            session_id,
            user_id,
            stream,
            state: None,
            is_stale: true,
            closed,
            intake,
        })
    }

    /// Read where the session is; None when what follows has to go by the twin.
    fn look_up(&mut self, py: Python<'_>) -> PyResult<()> {
        let follows = self.stream.call_method0(py, intern!(py, "follows"))?.is_truthy(py)?;
        if follows && self.ring.is_none() {
            self.ring = Some(Ring::new(py, self.stream.getattr(py, "ring")?)?);
        }
        let session = self.session.borrow(py);
        self.state = follows.then(|| SessionState {
            next_position: session.next_position,
            count: session.count,
            last_time_us: session.last_time_us,
        });
        self.is_stale = false;
        Ok(())
    }

    /// Move the session behind the samples, of which some were moved in time.
    fn advance(&self, py: Python<'_>, n_clamped: usize) -> PyResult<()> {
        let state = self.state.ok_or_else(|| PyValueError::new_err("expected a reader that has samples"))?;
        let SessionState { next_position, count, last_time_us } = state;
        let mut session = self.session.borrow_mut(py);
        let n_clamped = session.n_clamped + n_clamped;
        *session = SessionPosition { next_position, count, last_time_us, n_clamped };
        Ok(())
    }
}

fn no_relay() -> PyErr {
    PyValueError::new_err("expected a reader that has begun")
}

impl Ring {
    fn new(py: Python<'_>, ring: Py<PyAny>) -> PyResult<Self> {
        let times_us = PyBuffer::get(ring.getattr(py, "times_us")?.bind(py))?;
        let samples = PyBuffer::get(ring.getattr(py, "samples")?.bind(py))?;
        Ok(Self { position: ring.extract(py)?, times_us, samples })
    }

    fn write(&self, py: Python<'_>, run: &Run) -> PyResult<()> {
        let mut position = self.position.borrow_mut(py);
        run.write(cells(&self.times_us, py)?, cells(&self.samples, py)?, position.n_written);
        position.n_written += run.times_us.len();
        position.next_position = Some(run.end());
        Ok(())
    }
}

const MAX_THROUGH_BYTES: usize = 64 << 10; // past a queue at once: about what a transport buffers before it says stop

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
    Some(Run { position, times_us: times_us.to_vec(py).ok()?, values: samples.to_vec(py).ok()?, n_clamped: 0 })
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

/// The server's clock, µs since 1970: a steady one, which was set once by the system's (`streams/clock.py`).
struct SteadyClock {
    started: Instant,
    offset_us: AtomicI64, // of `started`
}

static CLOCK: LazyLock<SteadyClock> = LazyLock::new(|| {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64);
    SteadyClock { started: Instant::now(), offset_us: AtomicI64::new(since_1970) }
});

#[pyfunction(name = "now_us")]
fn clock_us() -> i64 {
    CLOCK.offset_us.load(Ordering::Relaxed) + CLOCK.started.elapsed().as_micros() as i64
}

#[pyfunction]
fn set_clock(now_us: i64) {
    CLOCK.offset_us.fetch_add(now_us - clock_us(), Ordering::Relaxed);
}

fn uuid(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.chars().filter(|&letter| letter != '-').collect();
    u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32).map(u128::to_be_bytes)
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("DEBUG", cfg!(debug_assertions))?;
    module.add_class::<CursorPosition>()?;
    module.add_class::<FrameReader>()?;
    module.add_class::<Intake>()?;
    module.add_class::<Reactor>()?;
    module.add_class::<RingPosition>()?;
    module.add_class::<SessionPosition>()?;
    module.add_class::<Shortcut>()?;
    module.add_class::<Socket>()?;
    module.add_function(wrap_pyfunction!(split_frames, module)?)?;
    module.add_function(wrap_pyfunction!(sample_texts, module)?)?;
    module.add_function(wrap_pyfunction!(chunk_text, module)?)?;
    module.add_function(wrap_pyfunction!(clock_us, module)?)?;
    module.add_function(wrap_pyfunction!(set_clock, module)?)
}
