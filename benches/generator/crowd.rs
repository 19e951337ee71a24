//! All relays and consumers on one thread: who is connected, what they send and what they hear. Times are ns since the
//! start of the load.

use std::io;
use std::mem::take;
use std::ops::Range;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mio::event::Event;
use mio::{Events, Poll};

use crate::dialect::Part;
use crate::frame;
use crate::histogram::Histogram;
use crate::inbox::Inbox;
use crate::load::{Load, Role};
use crate::pace::Pace;
use crate::peer::{self, Peer, Stage};
use crate::random::Random;
use crate::schedule::Schedule;

const N_AT_ONCE: usize = 32; // connections that wait for the server's answer
const PATIENCE: Duration = Duration::from_secs(30);
const N_BUFFER: usize = 64 << 10;
const N_STRANGE: usize = 100; // that are told of

pub struct Crowd {
    pub load: Load,
    pub schedule: Schedule,
    pub random: Random,
    pub start_us: i64, // since 1970
    pub sessions: Vec<String>,
    pub inboxes: Vec<Inbox>,
    pub latency: Histogram,
    pub latency_from_sent: Histogram,
    pub closed: Vec<String>,
    pub given_up: Vec<(u64, String)>, // of those that stall: when the server closed, and how
    pub strange: Vec<String>,
    sent_ns: Vec<Vec<u64>>, // by relay that has consumers, and message
    start: Instant,
    peers: Vec<Peer>,
    pace: Pace,
    n_ready: usize,
    poll: Poll,
    events: Events,
    buffer: Vec<u8>,
}

impl Crowd {
    pub fn new(load: Load) -> io::Result<Self> {
        let mut random = Random(load.seed);
        Ok(Self {
            schedule: Schedule::new(&load, &mut random),
            random,
            start_us: 0,
            start: Instant::now(),
            sessions: vec![String::new(); load.n_relays],
            inboxes: (0..load.n_consumers).map(|i| Inbox::new(&load, load.listened(i))).collect(),
            latency: Histogram::new(),
            latency_from_sent: Histogram::new(),
            closed: Vec::new(),
            given_up: Vec::new(),
            strange: Vec::new(),
            sent_ns: vec![vec![0; load.n_messages() as usize]; load.n_listened],
            peers: Vec::new(),
            pace: Pace::of(&load),
            n_ready: 0,
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            buffer: vec![0; N_BUFFER],
            load,
        })
    }

    /// Connect all relays, then the consumers; a few at a time, so that the server is not swamped.
    pub fn connect(&mut self) -> io::Result<()> {
        for n_all in [self.load.n_relays, self.load.n_peers()] {
            let mut heard = Instant::now();
            while self.n_ready < n_all {
                while self.peers.len() < n_all.min(self.n_ready + N_AT_ONCE) {
                    let n = self.peers.len();
                    self.peers.push(Peer::open(&self.load, n, self.poll.registry())?);
                }
                let n_ready = self.n_ready;
                self.receive(Some(Duration::from_millis(100)))?;
                if let Some(reason) = self.closed.first() {
                    return Err(io::Error::other(reason.clone()));
                }
                if self.n_ready > n_ready {
                    heard = Instant::now();
                } else if heard.elapsed() > PATIENCE {
                    let who = self.load.name(n_ready);
                    return Err(io::Error::other(format!("{who}: not let in for {} s", PATIENCE.as_secs())));
                }
            }
        }
        Ok(())
    }

    /// Let the load start after a while.
    pub fn begin_in(&mut self, lead: Duration) {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.start_us = (since_1970 + lead).as_micros() as i64;
        self.start = Instant::now() + lead;
    }

    pub fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Send messages of a relay; false when the relay was closed.
    pub fn send(&mut self, relay: usize, messages: Range<u64>, frames: &[u8], now_ns: u64) -> bool {
        if let Some(sent_ns) = self.sent_ns.get_mut(relay) {
            sent_ns[messages.start as usize..messages.end as usize].fill(now_ns);
        }
        let peer = &mut self.peers[relay];
        if peer.stage == Stage::Closed {
            return false;
        }
        if let Err(error) = peer.send(frames) {
            self.close(relay, &error.to_string());
            return false;
        }
        true
    }

    /// Send what is left of all relays; return how many bytes went.
    pub fn flush(&mut self) -> usize {
        let mut n_sent = 0;
        for n in 0..self.load.n_relays {
            match self.peers[n].flush() {
                Ok(n) => n_sent += n,
                Err(error) => self.close(n, &error.to_string()),
            }
        }
        n_sent
    }

    pub fn has_unsent(&self) -> bool {
        self.peers.iter().any(Peer::has_unsent)
    }

    /// Rest until something has come, or is due after `patience`; false when nothing has come.
    pub fn rest(&self, patience: Duration) -> io::Result<bool> {
        self.pace.rest(self.poll.registry(), patience)
    }

    /// Take what has arrived, after waiting for something; return how many bytes that was.
    pub fn receive(&mut self, patience: Option<Duration>) -> io::Result<usize> {
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        let result = match self.poll.poll(&mut events, patience) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(events.iter().map(|event| self.meet(event)).sum()),
        };
        self.events = events;
        result
    }

    fn meet(&mut self, event: &Event) -> usize {
        let n = event.token().0;
        if self.peers[n].stage == Stage::Stalled && !event.is_read_closed() && !event.is_error() {
            return 0;
        }
        let n_read = self.pull(n);
        if event.is_writable() {
            if let Err(error) = self.peers[n].flush() {
                self.close(n, &error.to_string());
            }
        }
        n_read
    }

    /// Read all that a peer was sent; return how many bytes that was.
    fn pull(&mut self, n: usize) -> usize {
        let mut buffer = take(&mut self.buffer);
        let (mut n_read, mut n_new) = (0, buffer.len());
        while n_new == buffer.len() && self.peers[n].stage != Stage::Closed {
            let read = self.peers[n].read(&mut buffer);
            match read.and_then(|n_bytes| self.hear(n, &buffer[..n_bytes]).map(|()| n_bytes)) {
                Ok(n_bytes) => (n_read, n_new) = (n_read + n_bytes, n_bytes),
                Err(error) => self.close(n, &error.to_string()),
            }
        }
        self.buffer = buffer;
        n_read
    }

    fn hear(&mut self, n: usize, bytes: &[u8]) -> io::Result<()> {
        let at_ns = self.now_ns();
        let mut kept = take(&mut self.peers[n].kept);
        if kept.is_empty() {
            let n_taken = self.hear_whole(n, bytes, at_ns)?;
            kept.extend_from_slice(&bytes[n_taken..]);
        } else {
            kept.extend_from_slice(bytes);
            let n_taken = self.hear_whole(n, &kept, at_ns)?;
            kept.drain(..n_taken);
        }
        self.peers[n].kept = kept;
        Ok(())
    }

    /// Take all that is complete; return how many bytes that was.
    fn hear_whole(&mut self, n: usize, bytes: &[u8], at_ns: u64) -> io::Result<usize> {
        let mut n_taken = 0;
        if self.peers[n].stage == Stage::Shaking {
            let Some(n_answer) = peer::read_answer(bytes)? else {
                return Ok(0);
            };
            n_taken = n_answer;
            self.enter(n)?;
        }
        while let Some((opcode, payload)) = frame::read(&bytes[n_taken..]) {
            let end = n_taken + payload.end;
            self.take(n, opcode, &bytes[n_taken + payload.start..end], at_ns)?;
            n_taken = end;
        }
        Ok(n_taken)
    }

    fn take(&mut self, n: usize, opcode: u8, payload: &[u8], at_ns: u64) -> io::Result<()> {
        match opcode {
            _ if self.peers[n].stage == Stage::Stalled && opcode != frame::CLOSE => {}
            frame::TEXT | frame::BINARY => self.take_parts(n, opcode, payload, at_ns)?,
            frame::PING => {
                let mut pong = Vec::new();
                frame::write(&mut pong, frame::PONG, payload, self.random.bits() as u32);
                self.peers[n].send(&pong)?;
            }
            frame::CLOSE => {
                let (code, reason) = payload.split_at(payload.len().min(2));
                let code = code.iter().fold(0, |code, &byte| code << 8 | u32::from(byte));
                return Err(io::Error::other(format!("{code} {}", String::from_utf8_lossy(reason))));
            }
            _ => self.wonder(n, opcode, payload),
        }
        Ok(())
    }

    fn take_parts(&mut self, n: usize, opcode: u8, mut payload: &[u8], at_ns: u64) -> io::Result<()> {
        while !payload.is_empty() {
            let is_greeting = self.peers[n].stage == Stage::Greeting;
            let (part, n_taken) = match self.load.dialect.part(payload, !is_greeting) {
                Ok(found) => found,
                Err(reason) if is_greeting => {
                    return Err(io::Error::other(format!("{reason}, got {}", String::from_utf8_lossy(payload))));
                }
                Err(_) => {
                    self.wonder(n, opcode, payload);
                    return Ok(());
                }
            };
            match part {
                Part::Welcome(session) if is_greeting => {
                    if let Role::Relay(relay) = self.load.role(n) {
                        self.sessions[relay] = session;
                    }
                    self.let_in(n, Stage::Ready);
                }
                Part::Samples(samples) if !self.take_samples(n, opcode, samples, at_ns) => {
                    self.wonder(n, opcode, samples);
                }
                Part::Ping(answer) => self.say(n, answer)?,
                _ => {}
            }
            payload = &payload[n_taken..];
        }
        Ok(())
    }

    /// Count the samples of a message; false for one that is not this peer's to get.
    fn take_samples(&mut self, n: usize, opcode: u8, samples: &[u8], at_ns: u64) -> bool {
        let is_asked = opcode == self.load.dialect.opcode(&self.load);
        let consumer = match self.load.role(n) {
            Role::Consumer(i) if is_asked => i,
            _ => return false,
        };
        let Some(came) = self.inboxes[consumer].take(samples, self.load.is_binary) else {
            return false;
        };
        let relay = self.load.listened(consumer);
        let (mut first, end) = (came.first, came.first + came.n);
        while first < end {
            let message = self.schedule.message(first);
            let next = self.schedule.first_index(message + 1).min(end);
            let due_ns = self.schedule.due_ns(relay, message);
            if due_ns >= self.schedule.warmup_ns {
                let sent_ns = self.sent_ns[relay][message as usize];
                self.latency.add(at_ns.saturating_sub(due_ns), next - first);
                self.latency_from_sent.add(at_ns.saturating_sub(sent_ns), next - first);
            }
            first = next;
        }
        true
    }

    /// The server has become a WebSocket: a peer says what it has to, or has only to listen.
    fn enter(&mut self, n: usize) -> io::Result<()> {
        if matches!(self.load.role(n), Role::Stalled(_)) {
            self.peers[n].narrow()?;
            self.let_in(n, Stage::Stalled);
            return Ok(());
        }
        let greeting = self.load.dialect.greeting(&self.load, n);
        if greeting.is_empty() {
            self.let_in(n, Stage::Ready);
            return Ok(());
        }
        self.peers[n].stage = Stage::Greeting;
        self.say(n, &greeting)
    }

    /// Send a message of the dialect, as it is.
    fn say(&mut self, n: usize, words: &[u8]) -> io::Result<()> {
        let mut message = Vec::new();
        frame::write(&mut message, self.load.dialect.opcode_of_words(), words, self.random.bits() as u32);
        self.peers[n].send(&message)
    }

    fn let_in(&mut self, n: usize, stage: Stage) {
        self.peers[n].stage = stage;
        self.n_ready += 1;
    }

    fn close(&mut self, n: usize, reason: &str) {
        match self.peers[n].stage {
            Stage::Closed => return,
            Stage::Stalled => self.given_up.push((self.now_ns(), reason.to_owned())),
            _ => self.closed.push(format!("{}: {reason}", self.load.name(n))),
        }
        self.peers[n].close(self.poll.registry());
    }

    fn wonder(&mut self, n: usize, opcode: u8, payload: &[u8]) {
        if self.strange.len() < N_STRANGE {
            let start = &payload[..payload.len().min(200)];
            let who = self.load.name(n);
            self.strange.push(format!("{who}: {opcode:#x} {}", String::from_utf8_lossy(start)));
        }
    }
}
