//! How the thread rests until something is due or has come.

use std::io;
use std::thread::sleep;
use std::time::Duration;

use mio::Registry;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::load::Load;

const TURN: Duration = Duration::from_micros(250); // between looks where there are many messages: waking for each costs
const MANY_PER_S: f64 = 30_000.0; // messages, sent and heard

#[derive(Clone, Copy)]
pub enum Pace {
    Exact,
    Turns,
}

impl Pace {
    pub fn of(load: &Load) -> Self {
        let n_messages = (load.n_relays + load.n_consumers) as f64;
        if n_messages / load.period_s() > MANY_PER_S { Self::Turns } else { Self::Exact }
    }

    /// Rest until a socket has something, but no longer than `patience`; in turns always one. False when none has.
    pub fn rest(self, sockets: &Registry, patience: Duration) -> io::Result<bool> {
        if matches!(self, Self::Turns) {
            sleep(TURN);
            return Ok(true); // surely
        }
        // mio itself would wait whole milliseconds
        let patience = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: patience.subsec_nanos().into() };
        match poll(&mut [PollFd::new(sockets, PollFlags::IN)], Some(&patience)) {
            Err(Errno::INTR) => Ok(false),
            found => Ok(found? > 0),
        }
    }
}
