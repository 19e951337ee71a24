//! What comes on one connection, frame by frame: of a relay raw messages that simply follow are taken, everything else
//! passes.

use std::cell::RefCell;

use crate::frame::{self, BINARY, CONTINUATION, CONTROL, PONG, TEXT};
use crate::raw::{self, Raw};
use crate::session::{Rules, Run, SessionState};

const MAX_MESSAGE_BYTES: u64 = 1 << 20;
const MAX_PASS_BYTES: usize = 16 << 10; // at once, to a parser that is slower
const MAX_PASS_FRAMES: usize = 8;
const MAX_RUN_BYTES: usize = 64 << 10; // of float32, as MAX_CHUNK_BYTES of chunk.py

/// Why bytes go to the standard parser.
#[derive(Clone, Copy)]
pub enum Reason {
    Frame,   // a control frame, a fragment, or one that breaks a rule of RFC 6455
    Message, // features, a ping, or raw that is not in its usual form, or wrong
    Session, // raw that does not simply follow: a gap, a repeat, the first of a session
}

pub const N_REASONS: usize = 3;

/// `More`: take the samples away, hand `pass` to the standard parser, and feed again. `All`: nothing is left,
/// but perhaps an unfinished frame.
pub enum Fed {
    All,
    More,
}

impl Fed {
    fn of(pass: &[u8]) -> Self {
        if pass.is_empty() { Self::All } else { Self::More }
    }
}

/// An unfinished frame, and what lies behind what was passed.
#[derive(Default)]
struct Kept {
    data: Vec<u8>,
    at: usize, // what lies before is done with
}

impl Kept {
    fn is_empty(&self) -> bool {
        self.bytes().is_empty()
    }

    fn bytes(&self) -> &[u8] {
        &self.data[self.at..]
    }

    fn add(&mut self, data: &[u8]) {
        self.data.extend_from_slice(data);
    }

    /// Be done with the first `n` bytes; each is moved once at most, however many frames lie behind.
    fn drop_front(&mut self, n: usize) {
        self.at += n;
        if self.at == self.data.len() {
            *self = Self::default();
        } else if self.at > self.data.len() / 2 {
            self.data.drain(..self.at);
            self.at = 0;
        }
    }
}

thread_local! {
    static SCRATCH: RefCell<(Vec<u8>, Raw)> = RefCell::default();
}

/// What the samples of a session are like.
#[derive(Clone, Copy)]
pub struct Layout {
    pub n_channels: usize,
    pub rules: Rules,
    pub max_run_samples: usize,
}

impl Layout {
    /// `capacity` is that of the ring: what is taken in at once has to fit into it.
    pub fn new(n_channels: usize, rules: Rules, capacity: usize) -> Self {
        let max_run_samples = capacity.min(MAX_RUN_BYTES / 4 / n_channels).max(1);
        Self { n_channels, rules, max_run_samples }
    }
}

#[derive(Default)]
pub struct Reader {
    pub run: Run,
    pub layout: Option<Layout>, // None: everything passes
    pub n_intercepted: u64,     // messages
    pub n_passed: [u64; N_REASONS],
    kept: Kept,
    n_passing: u64,  // bytes of a frame that are still to be passed
    is_joined: bool, // it is a control frame: if another follows, that is passed with it
    in_fragments: bool,
}

impl Reader {
    /// Go through what was kept and `data`. `state` is the session's, and moves with it; None: nothing follows.
    pub fn feed(&mut self, data: &[u8], state: &mut Option<SessionState>, now_us: i64, pass: &mut Vec<u8>) -> Fed {
        if self.kept.is_empty() {
            let (at, fed) = self.walk(data, state, now_us, pass);
            self.kept.add(&data[at..]);
            return fed;
        }
        let mut kept = std::mem::take(&mut self.kept);
        kept.add(data);
        let (at, fed) = self.walk(kept.bytes(), state, now_us, pass);
        kept.drop_front(at);
        self.kept = kept;
        fed
    }

    /// Whether a parser that got all that was passed is between two messages.
    pub fn is_between_messages(&self) -> bool {
        self.n_passing == 0 && !self.in_fragments
    }

    fn walk(
        &mut self,
        input: &[u8],
        state: &mut Option<SessionState>,
        now_us: i64,
        pass: &mut Vec<u8>,
    ) -> (usize, Fed) {
        let (mut at, mut n_passed) = (0, 0);
        loop {
            if self.n_passing > 0 {
                let n = self.n_passing.min((input.len() - at).min(MAX_PASS_BYTES) as u64) as usize;
                pass.extend_from_slice(&input[at..at + n]);
                self.n_passing -= n as u64;
                at += n;
                let is_joined = self.is_joined || self.layout.is_none();
                n_passed += 1;
                if self.n_passing > 0 || !is_joined || pass.len() >= MAX_PASS_BYTES || n_passed == MAX_PASS_FRAMES {
                    return (at, Fed::of(pass));
                }
            }
            let Some(header) = frame::header(&input[at..], MAX_MESSAGE_BYTES) else {
                return (at, Fed::of(pass));
            };
            let n_frame = header.n_payload.saturating_add(header.n_bytes as u64);
            let is_data = header.opcode == TEXT || header.opcode == BINARY;
            if header.opcode == PONG && header.is_plain && header.fin && header.n_payload < 126 && pass.is_empty() {
                if ((input.len() - at) as u64) < n_frame {
                    return (at, Fed::All);
                }
                at += n_frame as usize; // it has told that the peer is there
                continue;
            }
            let is_plain = header.is_plain && header.fin && is_data && !self.in_fragments;
            if !is_plain || self.layout.is_none() {
                if is_data || header.opcode == CONTINUATION {
                    self.in_fragments = !header.fin;
                }
                self.start_passing(n_frame, Reason::Frame);
                self.is_joined = header.opcode >= CONTROL;
                continue;
            }
            if !pass.is_empty() || ((input.len() - at) as u64) < n_frame {
                return (at, Fed::of(pass));
            }
            let end = at + n_frame as usize;
            let payload = &input[at + header.n_bytes..end];
            match self.intercept(payload, header.mask, header.opcode == TEXT, state, now_us) {
                Ok(true) => {
                    self.n_intercepted += 1;
                    at = end;
                }
                Ok(false) => return (at, Fed::More),
                Err(reason) => self.start_passing(n_frame, reason),
            }
        }
    }

    fn start_passing(&mut self, n_bytes: u64, reason: Reason) {
        self.n_passing = n_bytes;
        self.is_joined = false;
        self.n_passed[reason as usize] += u64::from(self.layout.is_some());
    }

    /// Take a message in; false when there is no room for it in this run.
    fn intercept(
        &mut self,
        payload: &[u8],
        mask: [u8; 4],
        is_text: bool,
        state: &mut Option<SessionState>,
        now_us: i64,
    ) -> Result<bool, Reason> {
        let (Some(now), Some(layout)) = (*state, self.layout) else { return Err(Reason::Session) };
        SCRATCH.with_borrow_mut(|(plain, raw)| {
            frame::unmask(payload, mask, plain);
            let read = if is_text { raw::read_json } else { raw::read_binary };
            read(plain, layout.n_channels, raw).ok_or(Reason::Message)?;
            if raw.n_samples > layout.max_run_samples {
                return Err(Reason::Session);
            }
            if self.run.times_us.len() + raw.n_samples > layout.max_run_samples {
                return Ok(false);
            }
            *state = Some(self.run.accept(raw, now, layout.rules, now_us).ok_or(Reason::Session)?);
            Ok(true)
        })
    }
}
