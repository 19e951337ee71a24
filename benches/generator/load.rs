//! What is asked for: the `Load` of frames.py, as JSON; and who the peers are.

use serde_json::{Value, json};

use crate::dialect::Dialect;

/// Who a peer is: of the relays, of the consumers, or of those that listen and never read; by number among them.
#[derive(Clone, Copy)]
pub enum Role {
    Relay(usize),
    Consumer(usize),
    Stalled(usize),
}

pub struct Load {
    pub port: u16,
    pub dialect: Dialect,
    pub n_relays: usize,
    pub n_consumers: usize,
    pub n_stalled: usize,
    pub n_listened: usize, // relays that have all consumers and all that stall, in turn
    pub rate_hz: f64,
    pub n_channels: usize,
    pub is_binary: bool,
    pub n_chunk: usize, // samples of a message
    pub duration_s: f64,
    pub warmup_s: f64,
    pub seed: u64,
}

impl Load {
    pub fn read(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let number = |name: &str| value[name].as_f64().ok_or(format!("{name}: expected a number, got {}", value[name]));
        let count = |name: &str| value[name].as_u64().ok_or(format!("{name}: expected a count, got {}", value[name]));
        let load = Self {
            port: count("port")? as u16,
            dialect: value["dialect"].as_str().and_then(Dialect::read).ok_or("dialect: expected that of a system")?,
            n_relays: count("relays")? as usize,
            n_consumers: count("consumers")? as usize,
            n_stalled: count("stalled")? as usize,
            n_listened: count("listened")? as usize,
            rate_hz: number("rate_hz")?,
            n_channels: count("n_channels")? as usize,
            is_binary: match value["format"].as_str() {
                Some("json") => false,
                Some("binary") => true,
                _ => return Err(format!("format: expected json or binary, got {}", value["format"])),
            },
            n_chunk: count("n_chunk")? as usize,
            duration_s: number("duration_s")?,
            warmup_s: number("warmup_s")?,
            seed: count("seed")?,
        };
        if load.n_listened > load.n_relays || (load.n_listened == 0 && load.n_consumers + load.n_stalled > 0) {
            return Err(format!("listened: expected up to {} relays, got {}", load.n_relays, load.n_listened));
        }
        if load.n_channels == 0 || load.n_chunk == 0 || load.rate_hz <= 0.0 || (load.n_chunk > 1 && !load.is_binary) {
            return Err("expected channels, samples and a rate, and one sample in JSON".to_owned());
        }
        Ok(load)
    }

    /// Messages of each relay, warm-up included.
    pub fn n_messages(&self) -> u64 {
        let n_samples = (self.warmup_s + self.duration_s) * self.rate_hz;
        (n_samples / self.n_chunk as f64).round_ties_even() as u64
    }

    pub fn n_samples(&self) -> u64 {
        self.n_messages() * self.n_chunk as u64
    }

    /// Time between two messages.
    pub fn period_s(&self) -> f64 {
        self.n_chunk as f64 / self.rate_hz
    }

    pub fn n_readers(&self) -> usize {
        self.n_relays + self.n_consumers
    }

    pub fn n_peers(&self) -> usize {
        self.n_readers() + self.n_stalled
    }

    /// The relays come first, then the consumers, then those that stall.
    pub fn role(&self, n: usize) -> Role {
        match n {
            n if n < self.n_relays => Role::Relay(n),
            n if n < self.n_readers() => Role::Consumer(n - self.n_relays),
            n => Role::Stalled(n - self.n_readers()),
        }
    }

    /// The relay that a consumer listens to.
    pub fn listened(&self, consumer: usize) -> usize {
        consumer % self.n_listened
    }

    /// The relay that a peer is, or listens to.
    pub fn relay(&self, n: usize) -> usize {
        match self.role(n) {
            Role::Relay(i) => i,
            Role::Consumer(i) | Role::Stalled(i) => self.listened(i),
        }
    }

    /// What a relay of Zander says first.
    pub fn auth(&self, relay: usize) -> String {
        let device = json!({
            "device_type": "bench", "sampling_rate": self.rate_hz, "channel_count": self.n_channels,
        });
        json!({"type": "auth", "api_key": "none", "user_id": user(relay), "device_info": device}).to_string()
    }

    pub fn name(&self, n: usize) -> String {
        match self.role(n) {
            Role::Relay(i) => format!("relay {}", user(i)),
            Role::Consumer(i) => format!("consumer {i} of {}", user(self.listened(i))),
            Role::Stalled(i) => format!("stalled consumer {i} of {}", user(self.listened(i))),
        }
    }
}

pub fn user(relay: usize) -> String {
    format!("bench-{relay:04}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consumers_and_those_that_stall_are_spread_over_the_relays_that_have_some() {
        let text = r#"{"port":1,"dialect":"zander","relays":5,"consumers":3,"listened":2,"stalled":2,"rate_hz":8,"n_channels":3,
            "format":"json","n_chunk":1,"duration_s":1,"warmup_s":0,"seed":1}"#;
        let load = Load::read(text).unwrap();
        let paths: Vec<String> = (4..load.n_peers()).map(|n| load.dialect.path(&load, n)).collect();
        let of = |relay: usize| format!("/subscribe/bench-{relay:04}?format=json");
        assert_eq!(paths, ["/stream".to_owned(), of(0), of(1), of(0), of(0), of(1)]);
        assert!(Load::read(&text.replace(r#""listened":2"#, r#""listened":6"#)).is_err());
    }
}
