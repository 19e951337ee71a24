//! `Reactor`: all connections in one epoll set (kqueue on macOS), and one call per iteration of the loop.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use pyo3::exceptions::PyOSError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::intake::take;
use crate::transport::{Socket, Step};

const RECEIVE_BYTES: usize = 32 << 10; // of one connection in one turn
const MAX_EVENTS: usize = 1024;

#[pyclass]
pub struct Reactor {
    poll: Poll,
    events: Events,
    sockets: Vec<Option<Py<Socket>>>,
    free: Vec<usize>,
    ready: VecDeque<Py<Socket>>, // have more than they could take in their last turn
    is_scheduled: bool,
    n_turns: u64,
    pub event_loop: Py<PyAny>,
    buffer: Vec<u8>,
}

/// What one connection is to do in a turn.
struct Turn {
    socket: Py<Socket>,
    is_readable: bool,
    is_writable: bool,
    is_ending: bool, // the end may lie behind what is received
}

#[pymethods]
impl Reactor {
    #[new]
    fn new(event_loop: Py<PyAny>) -> PyResult<Self> {
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(MAX_EVENTS),
            sockets: Vec::new(),
            free: Vec::new(),
            ready: VecDeque::new(),
            is_scheduled: false,
            n_turns: 0,
            event_loop,
            buffer: vec![0; RECEIVE_BYTES],
        })
    }

    fn fileno(&self) -> RawFd {
        self.poll.as_raw_fd()
    }

    fn add(slf: &Bound<'_, Self>, fd: RawFd, peername: Py<PyAny>, protocol: Py<PyAny>) -> PyResult<Py<Socket>> {
        let (py, mut tcp) = (slf.py(), TcpStream::from(owned(fd)));
        let mut reactor = slf.borrow_mut();
        let token = reactor.free.pop().unwrap_or(reactor.sockets.len());
        reactor.poll.registry().register(&mut tcp, Token(token), Interest::READABLE | Interest::WRITABLE)?;
        let socket = Socket::new(tcp, slf.clone().unbind(), token, peername, protocol.clone_ref(py));
        let socket = Py::new(py, socket)?;
        if token == reactor.sockets.len() {
            reactor.sockets.push(None);
        }
        reactor.sockets[token] = Some(socket.clone_ref(py));
        drop(reactor);
        protocol.call_method1(py, intern!(py, "connection_made"), (&socket,))?;
        Ok(socket)
    }

    /// Receive from all who sent, and let every protocol do its part: the loop calls it when `fileno` is readable.
    fn turn(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let (turns, n_turns, mut buffer) = {
            let mut reactor = slf.borrow_mut();
            (reactor.wait(py)?, reactor.n_turns, std::mem::take(&mut reactor.buffer))
        };
        let (mut readers, mut steps) = (Vec::new(), Vec::new());
        for turn in turns {
            let mut socket = turn.socket.borrow_mut(py);
            if std::mem::replace(&mut socket.last_turn, n_turns) == n_turns {
                continue; // it has had this one
            }
            let is_writable_again = turn.is_writable && socket.send_unsent();
            socket.has_more |= turn.is_readable || turn.is_ending;
            let step = socket.receive(py, &mut buffer).unwrap_or_else(Step::Failed);
            socket.has_more |= turn.is_ending; // the end gives no sign of its own
            if let Some(reader) = socket.samples(py) {
                readers.push(reader);
            }
            drop(socket);
            if is_writable_again || !matches!(step, Step::Nothing) {
                steps.push((turn.socket, is_writable_again, step));
            }
        }
        slf.borrow_mut().buffer = buffer;
        if let Err(error) = take(py, readers) {
            slf.borrow().report(py, error, py.None().bind(py))?;
        }
        for (socket, is_writable_again, step) in steps {
            let socket = socket.bind(py);
            if is_writable_again {
                Socket::call(socket, |protocol| protocol.call_method0(intern!(py, "resume_writing")))?;
                Socket::finish_closing(socket)?;
            }
            if let Err(error) = Socket::follow(socket, step) {
                Socket::fail(socket, error)?;
            }
        }
        Ok(())
    }
}

impl Reactor {
    /// Forget a socket that has ended.
    pub fn forget(&mut self, token: usize) {
        self.sockets[token] = None;
        self.free.push(token);
    }

    fn wait(&mut self, py: Python<'_>) -> PyResult<Vec<Turn>> {
        self.is_scheduled = false;
        self.n_turns += 1;
        match self.poll.poll(&mut self.events, Some(Duration::ZERO)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(PyOSError::new_err(error)),
            _ => {}
        }
        let mut turns: Vec<Turn> = Vec::new();
        for event in &self.events {
            if let Some(Some(socket)) = self.sockets.get(event.token().0) {
                turns.push(Turn {
                    socket: socket.clone_ref(py),
                    is_readable: event.is_readable(),
                    is_writable: event.is_writable(),
                    is_ending: event.is_read_closed() || event.is_error(),
                });
            }
        }
        turns.extend(self.ready.drain(..).map(|socket| Turn {
            socket,
            is_readable: false,
            is_writable: false,
            is_ending: false,
        }));
        Ok(turns)
    }

    /// Tell the loop of an error of the server.
    pub fn report(&self, py: Python<'_>, error: PyErr, protocol: &Bound<'_, PyAny>) -> PyResult<()> {
        let context = PyDict::new(py);
        context.set_item("message", "a connection failed")?;
        context.set_item("exception", error)?;
        context.set_item("protocol", protocol)?;
        self.event_loop.call_method1(py, intern!(py, "call_exception_handler"), (context,)).map(drop)
    }

    /// Give a socket another turn.
    pub fn again(slf: &Bound<'_, Self>, socket: Py<Socket>) -> PyResult<()> {
        let mut reactor = slf.borrow_mut();
        reactor.ready.push_back(socket);
        if !reactor.is_scheduled {
            reactor.is_scheduled = true;
            let event_loop = reactor.event_loop.clone_ref(slf.py());
            drop(reactor);
            event_loop.call_method1(slf.py(), intern!(slf.py(), "call_soon"), (slf.getattr("turn")?,))?;
        }
        Ok(())
    }
}

/// Take over a descriptor.
#[allow(unsafe_code)]
fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: `add` says that the caller has detached it: nobody else uses or closes it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
