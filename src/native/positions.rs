//! The positions that samples move: of a session, a ring and a cursor. Python has the same classes in `positions.py`.
//!
//! They are base classes of Python's, so both sides read and move the same numbers, and nothing is called for a sample.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

use crate::transport::Socket;

#[pyclass(subclass, get_all, set_all)]
#[derive(Default)]
pub struct SessionPosition {
    pub next_position: i64,
    pub count: i64,
    pub last_time_us: i64,
    pub n_clamped: usize,
}

#[pyclass(subclass, get_all, set_all)]
#[derive(Default)]
pub struct RingPosition {
    pub n_written: usize,
    pub next_position: Option<i64>,
}

#[pyclass(subclass, get_all, set_all)]
#[derive(Default)]
pub struct CursorPosition {
    pub session_id: Option<Py<PyString>>,
    pub position: i64,
}

#[pyclass(subclass, get_all, set_all)]
pub struct Shortcut {
    pub cursor: Py<CursorPosition>,
    pub through: Option<Py<Socket>>,
}

/// A base class takes no arguments of its own, and leaves those of its subclass to that.
macro_rules! base_class {
    ($name:ident) => {
        #[pymethods]
        impl $name {
            #[new]
            #[pyo3(signature = (*_arguments, **_named))]
            fn new(_arguments: &Bound<'_, PyTuple>, _named: Option<&Bound<'_, PyDict>>) -> Self {
                Self::default()
            }
        }
    };
}

base_class!(SessionPosition);
base_class!(RingPosition);
base_class!(CursorPosition);

#[pymethods]
impl Shortcut {
    #[new]
    #[pyo3(signature = (*_arguments, **_named))]
    fn new(py: Python<'_>, _arguments: &Bound<'_, PyTuple>, _named: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        Ok(Self { cursor: Py::new(py, CursorPosition::default())?, through: None })
    }
}

impl Shortcut {
    /// Return the socket to write samples of a session to, if nothing waits and they are the next that are owed.
    pub fn socket_at(&self, py: Python<'_>, session_id: &Bound<'_, PyString>, position: i64) -> Option<Py<Socket>> {
        let (socket, cursor) = (self.through.as_ref()?, self.cursor.borrow(py));
        let is_in = |id: &Py<PyString>| id.is(session_id) || id.bind(py).as_any().eq(session_id).unwrap_or(false);
        let is_next = cursor.position == position && cursor.session_id.as_ref().is_some_and(is_in);
        is_next.then(|| socket.clone_ref(py))
    }
}
