//! `Socket`: the transport of one connection of a reactor.
//!
//! Python is called where nothing here is borrowed: any call may come back.

use std::time::Instant;

use mio::net::TcpStream;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::FrameReader;
use crate::intake::take;
use crate::reactor::Reactor;
use crate::stream::{Received, Stream};

const PASS_BYTES: usize = 16 << 10; // by way of Python, of one connection in one turn
const PASSES: usize = 8; // and how often
const HIGH_WATER: usize = 64 << 10; // unsent bytes from which on a protocol is to write no more
const LOW_WATER: usize = 16 << 10;
const WAIT_SECONDS: f64 = 0.01; // of a connection that has sent too much

/// What comes of what was received.
pub enum Step {
    Nothing,
    Pass(Py<PyBytes>), // to the protocol
    Again,             // there may be more
    End,
    Wait, // it has sent too much
    Lost,
    Failed(PyErr), // here
}

/// How many bytes a second may be received, in the long run; and how many now.
struct Limit {
    rate: f64,
    allowance: f64, // of one second at most
    since: Instant,
}

impl Limit {
    fn is_over(&mut self) -> bool {
        let now = Instant::now();
        let gained = now.duration_since(self.since).as_secs_f64() * self.rate;
        (self.allowance, self.since) = ((self.allowance + gained).min(self.rate), now);
        self.allowance <= 0.0
    }
}

/// The transport of one connection; asyncio's manual says what a protocol is told when.
#[pyclass]
pub struct Socket {
    stream: Option<Stream>, // until it has ended
    reactor: Py<Reactor>,
    token: usize,
    peername: Py<PyAny>,
    protocol: Option<Py<PyAny>>, // until it was told that the connection is lost
    reader: Option<Py<FrameReader>>,
    is_paused: bool,
    is_closing: bool,
    is_over_water: bool,
    pub has_more: bool, // something may have come that is not received
    is_behind: bool,    // the reader has more
    was_heard: bool,
    is_broken: bool, // nothing can be sent
    pub last_turn: u64,
    limit: Option<Limit>,
    is_waiting: bool, // a call of `go_on` is due
    was_throttled: bool,
    delay_s: f64,  // for which frames are held, so that more go in one piece
    held: Vec<u8>, // not empty only while a call of `send_held` is due
}

#[pymethods]
impl Socket {
    fn write(slf: &Bound<'_, Self>, data: &[u8]) -> PyResult<()> {
        let socket = slf.borrow_mut();
        if socket.is_closing { Ok(()) } else { Self::send(slf, socket, data).map(drop) }
    }

    fn write_soon(slf: &Bound<'_, Self>, data: &[u8]) -> PyResult<()> {
        let socket = slf.borrow_mut();
        if socket.is_closing { Ok(()) } else { Self::hold(slf, socket, data, 0.0) }
    }

    fn close(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::send_held(slf)?;
        slf.borrow_mut().is_closing = true;
        Self::finish_closing(slf)
    }

    fn abort(slf: &Bound<'_, Self>) -> PyResult<()> {
        let mut socket = slf.borrow_mut();
        socket.is_closing = true;
        if let Some(stream) = &socket.stream {
            stream.reset_when_closed();
        }
        drop(socket);
        Self::lose(slf)
    }

    fn is_closing(&self) -> bool {
        self.is_closing
    }

    fn pause_reading(&mut self) {
        self.is_paused = true;
    }

    fn resume_reading(slf: &Bound<'_, Self>) -> PyResult<()> {
        let mut socket = slf.borrow_mut();
        socket.is_paused = false;
        let has_more = socket.stream.is_some() && (socket.has_more || socket.is_behind);
        drop(socket);
        if has_more { Self::again(slf) } else { Ok(()) }
    }

    fn set_protocol(&mut self, protocol: Py<PyAny>) {
        self.protocol = Some(protocol);
    }

    fn get_protocol<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.protocol.as_ref().map(|protocol| protocol.bind(py).clone())
    }

    #[pyo3(signature = (name, default=None))]
    fn get_extra_info(&self, py: Python<'_>, name: &str, default: Option<Py<PyAny>>) -> Option<Py<PyAny>> {
        if name == "peername" { Some(self.peername.clone_ref(py)) } else { default }
    }

    fn get_write_buffer_size(&self) -> usize {
        self.stream.as_ref().map_or(0, Stream::n_unsent)
    }

    fn limit(&mut self, bytes_per_second: f64) {
        self.limit = Some(Limit { rate: bytes_per_second, allowance: bytes_per_second, since: Instant::now() });
    }

    fn take_throttled(&mut self) -> bool {
        std::mem::take(&mut self.was_throttled)
    }

    fn go_on(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.borrow_mut().is_waiting = false;
        Self::again(slf)
    }

    fn delay(&mut self, seconds: f64) {
        self.delay_s = seconds;
    }

    fn send_held(slf: &Bound<'_, Self>) -> PyResult<()> {
        if slf.borrow().held.is_empty() { Ok(()) } else { Self::write(slf, &[]) }
    }

    fn read_frames(&mut self, reader: Py<FrameReader>) {
        self.reader = Some(reader);
    }

    fn take_heard(&mut self) -> bool {
        std::mem::take(&mut self.was_heard)
    }
}

impl Socket {
    pub fn new(tcp: TcpStream, reactor: Py<Reactor>, token: usize, peername: Py<PyAny>, protocol: Py<PyAny>) -> Self {
        Self {
            stream: Some(Stream::new(tcp)),
            reactor,
            token,
            peername,
            protocol: Some(protocol),
            reader: None,
            is_paused: false,
            is_closing: false,
            is_over_water: false,
            has_more: false,
            is_behind: false,
            was_heard: false,
            is_broken: false,
            last_turn: 0,
            limit: None,
            is_waiting: false,
            was_throttled: false,
            delay_s: 0.0,
            held: Vec::new(),
        }
    }

    /// Receive once, unless it is another's turn.
    pub fn receive(&mut self, py: Python<'_>, buffer: &mut [u8]) -> PyResult<Step> {
        if self.is_broken {
            return Ok(Step::Lost);
        }
        if self.is_paused || self.is_closing {
            return Ok(Step::Nothing);
        }
        if self.is_behind {
            let step = self.feed(py, &[])?;
            if !matches!(step, Step::Nothing) {
                return Ok(step);
            }
        }
        let Some(stream) = self.stream.as_mut().filter(|_| self.has_more) else { return Ok(Step::Nothing) };
        if self.limit.as_mut().is_some_and(Limit::is_over) {
            self.was_throttled = true;
            return Ok(Step::Wait);
        }
        match stream.receive(buffer) {
            Received::Bytes(n) => {
                self.was_heard = true;
                if let Some(limit) = &mut self.limit {
                    limit.allowance -= n as f64;
                }
                self.has_more = n == buffer.len();
                let step = self.feed(py, &buffer[..n])?;
                Ok(if matches!(step, Step::Nothing) && self.has_more { Step::Again } else { step })
            }
            Received::Nothing => {
                self.has_more = false;
                Ok(Step::Nothing)
            }
            Received::End => Ok(Step::End),
            Received::Lost => Ok(Step::Lost),
        }
    }

    fn feed(&mut self, py: Python<'_>, data: &[u8]) -> PyResult<Step> {
        let Some(reader) = &self.reader else {
            return Ok(Step::Pass(PyBytes::new(py, data).unbind()));
        };
        let passed = reader.borrow_mut(py).receive(py, data)?;
        self.is_behind = passed.is_some();
        Ok(passed.map_or(Step::Nothing, |passed| Step::Pass(passed.unbind())))
    }

    /// Return the reader, if it has samples.
    pub fn samples(&self, py: Python<'_>) -> Option<Py<FrameReader>> {
        self.reader.as_ref().filter(|reader| reader.borrow(py).has_samples()).map(|reader| reader.clone_ref(py))
    }

    /// Do what a step says, and the next ones, as long as the connection has its turn.
    pub fn follow(slf: &Bound<'_, Self>, step: Step) -> PyResult<()> {
        let (py, mut step, mut n_bytes, mut n_passes) = (slf.py(), step, 0, 0);
        loop {
            match step {
                Step::Nothing => {}
                Step::End => return Self::close(slf), // behind what is not sent yet
                Step::Wait => return Self::wait(slf),
                Step::Lost => return Self::lose(slf),
                Step::Failed(error) => return Err(error),
                Step::Again => return Self::again(slf),
                Step::Pass(data) => {
                    n_bytes += data.as_bytes(py).len();
                    n_passes += 1;
                    Self::call(slf, |protocol| protocol.call_method1(intern!(py, "data_received"), (data,)))?;
                }
            }
            let mut socket = slf.borrow_mut();
            if socket.stream.is_none() || socket.is_paused || socket.is_closing {
                return Ok(());
            }
            if !socket.is_behind {
                let has_more = socket.has_more;
                drop(socket);
                return if has_more { Self::again(slf) } else { Ok(()) };
            }
            let has_had_its_turn = socket.reader.as_ref().is_some_and(|reader| !reader.borrow(py).is_intercepting());
            if n_bytes >= PASS_BYTES || n_passes >= PASSES || has_had_its_turn {
                drop(socket);
                return Self::again(slf);
            }
            step = socket.feed(py, &[])?;
            let reader = socket.samples(py);
            drop(socket);
            take(py, reader.into_iter().collect())?;
        }
    }

    /// Have the next turn a little later.
    fn wait(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, mut socket) = (slf.py(), slf.borrow_mut());
        if std::mem::replace(&mut socket.is_waiting, true) {
            return Ok(());
        }
        let event_loop = socket.reactor.borrow(py).event_loop.clone_ref(py);
        drop(socket);
        event_loop.call_method1(py, intern!(py, "call_later"), (WAIT_SECONDS, slf.getattr("go_on")?)).map(drop)
    }

    fn again(slf: &Bound<'_, Self>) -> PyResult<()> {
        let reactor = slf.borrow().reactor.clone_ref(slf.py());
        Reactor::again(reactor.bind(slf.py()), slf.clone().unbind())
    }

    /// Call the protocol. What it raises is an error of the server: it is told, and the connection ends.
    pub fn call<'py>(
        slf: &Bound<'py, Self>,
        method: impl FnOnce(&Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>>,
    ) -> PyResult<()> {
        let py = slf.py();
        let Some(protocol) = slf.borrow().protocol.as_ref().map(|protocol| protocol.bind(py).clone()) else {
            return Ok(());
        };
        method(&protocol).map_or_else(|error| Self::fail(slf, error), |_| Ok(()))
    }

    pub fn fail(slf: &Bound<'_, Self>, error: PyErr) -> PyResult<()> {
        let py = slf.py();
        let protocol = slf.borrow().protocol.as_ref().map(|protocol| protocol.clone_ref(py)).into_pyobject(py)?;
        slf.borrow().reactor.borrow(py).report(py, error, &protocol)?;
        Self::abort(slf)
    }

    /// Send what is held and then this, and keep what cannot be sent now; false when the connection is lost by that.
    fn send(slf: &Bound<'_, Self>, mut socket: PyRefMut<'_, Self>, data: &[u8]) -> PyResult<bool> {
        let mut held = std::mem::take(&mut socket.held);
        let Some(stream) = &mut socket.stream else { return Ok(false) };
        let is_sent = if held.is_empty() {
            stream.send(data).is_ok()
        } else {
            held.extend_from_slice(data); // one call for both
            stream.send(&held).is_ok()
        };
        let is_too_much = is_sent && socket.is_too_much();
        drop(socket);
        if !is_sent {
            Self::lose(slf)?;
        } else if is_too_much {
            Self::call(slf, |protocol| protocol.call_method0(intern!(slf.py(), "pause_writing")))?;
        }
        Ok(is_sent)
    }

    /// Whether there is too much now, and the protocol does not know.
    fn is_too_much(&mut self) -> bool {
        let is_over = self.get_write_buffer_size() > HIGH_WATER;
        is_over && !std::mem::replace(&mut self.is_over_water, true)
    }

    /// Send what was kept; true when the protocol is to be told that it may go on, or that it can close.
    pub fn send_unsent(&mut self) -> bool {
        let Some(stream) = self.stream.as_mut().filter(|stream| stream.n_unsent() > 0) else { return false };
        if stream.send_unsent().is_err() {
            self.is_broken = true;
            return false;
        }
        let n_unsent = stream.n_unsent();
        (n_unsent <= LOW_WATER && std::mem::replace(&mut self.is_over_water, false))
            || (self.is_closing && n_unsent == 0)
    }

    /// Write whole frames, where nothing waits; false when they have to.
    pub fn write_now(slf: &Bound<'_, Self>, frames: &[u8]) -> PyResult<bool> {
        let socket = slf.borrow_mut();
        if socket.is_closing || socket.get_write_buffer_size() > 0 {
            return Ok(false);
        }
        let is_held = socket.delay_s > 0.0 && socket.held.len() < HIGH_WATER;
        if !is_held {
            return Self::send(slf, socket, frames);
        }
        let delay_s = socket.delay_s;
        Self::hold(slf, socket, frames, delay_s).map(|()| true)
    }

    /// Keep data until the delay is over, or something else is written.
    fn hold(slf: &Bound<'_, Self>, mut socket: PyRefMut<'_, Self>, data: &[u8], delay_s: f64) -> PyResult<()> {
        let (py, is_first) = (slf.py(), socket.held.is_empty());
        socket.held.extend_from_slice(data);
        let reactor = socket.reactor.clone_ref(py);
        drop(socket);
        if is_first {
            let event_loop = reactor.borrow(py).event_loop.clone_ref(py);
            event_loop.call_method1(py, intern!(py, "call_later"), (delay_s, slf.getattr("send_held")?))?;
        }
        Ok(())
    }

    pub fn finish_closing(slf: &Bound<'_, Self>) -> PyResult<()> {
        let socket = slf.borrow();
        let is_done = socket.is_closing && socket.get_write_buffer_size() == 0;
        drop(socket);
        if is_done { Self::lose(slf) } else { Ok(()) }
    }

    /// End, and tell the protocol in the next iteration of the loop.
    fn lose(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let mut socket = slf.borrow_mut();
        if socket.stream.take().is_none() {
            return Ok(());
        }
        socket.is_closing = true;
        socket.reader = None;
        let (token, reactor) = (socket.token, socket.reactor.clone_ref(py));
        let protocol = socket.protocol.take();
        drop(socket);
        let mut reactor = reactor.bind(py).borrow_mut();
        reactor.forget(token);
        let event_loop = reactor.event_loop.clone_ref(py);
        drop(reactor);
        if let Some(protocol) = protocol {
            let lost = protocol.getattr(py, intern!(py, "connection_lost"))?;
            event_loop.call_method1(py, intern!(py, "call_soon"), (lost, py.None()))?;
        }
        Ok(())
    }
}
