//! When what is to be sent. All relays send at the same rate, so that they come in the order of their phases, over and
//! over. Times are ns since the start.

use crate::load::Load;
use crate::random::Random;

pub struct Schedule {
    phase_ns: Vec<u64>, // by relay
    order: Vec<usize>,  // the relays by phase
    period_s: f64,
    n_chunk: u64,
    pub warmup_ns: u64,
    pub n_sends: u64,
}

impl Schedule {
    pub fn new(load: &Load, random: &mut Random) -> Self {
        let period_s = load.period_s();
        let phase_ns: Vec<u64> = (0..load.n_relays).map(|_| (random.share() * period_s * 1e9) as u64).collect();
        let mut order: Vec<usize> = (0..load.n_relays).collect();
        order.sort_by_key(|&relay| phase_ns[relay]);
        Self {
            phase_ns,
            order,
            period_s,
            n_chunk: load.n_chunk as u64,
            warmup_ns: (load.warmup_s * 1e9) as u64,
            n_sends: load.n_messages() * load.n_relays as u64,
        }
    }

    /// The relay and the number of its message that is the n-th of all.
    pub fn send(&self, n: u64) -> (usize, u64) {
        let n_relays = self.order.len() as u64;
        (self.order[(n % n_relays) as usize], n / n_relays)
    }

    pub fn due_ns(&self, relay: usize, message: u64) -> u64 {
        self.phase_ns[relay] + (message as f64 * self.period_s * 1e9) as u64
    }

    /// Number of the message that has the sample.
    pub fn message(&self, index: u64) -> u64 {
        index / self.n_chunk
    }

    pub fn first_index(&self, message: u64) -> u64 {
        message * self.n_chunk
    }
}
