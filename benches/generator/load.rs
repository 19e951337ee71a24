//! What is asked for: the `Load` of frames.py, as JSON. Consumers here are one for each of the first relays.

use serde_json::Value;

pub struct Load {
    pub port: u16,
    pub n_relays: usize,
    pub n_consumers: usize,
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
            n_relays: count("relays")? as usize,
            n_consumers: count("consumers")? as usize,
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
        if load.n_consumers > load.n_relays {
            return Err(format!("consumers: expected at most {}, one of each relay", load.n_relays));
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
}
