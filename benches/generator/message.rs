//! Raw messages of the relays. Channel 0 of every sample is its index, channel 1 the number of its relay: so a loss, a
//! repeat and a stranger show. The others are like EEG, and written before the run.

use std::io::Write;

use crate::dialect::Dialect;
use crate::frame;
use crate::load::Load;
use crate::random::Random;

const N_TAILS: u64 = 997; // different samples but for their first two channels
const DEVIATION_UV: f64 = 20.0;

pub struct Messages {
    n_channels: usize,
    n_chunk: usize,
    is_binary: bool,
    dialect: Dialect,
    opcode: u8,
    sample_us: f64,
    texts: Vec<Vec<u8>>,
    binaries: Vec<Vec<u8>>,
    samples: Vec<u8>,
    payload: Vec<u8>,
}

impl Messages {
    pub fn new(load: &Load, random: &mut Random) -> Self {
        let rows: Vec<Vec<f64>> = (0..N_TAILS)
            .map(|_| (2..load.n_channels).map(|_| (random.normal(DEVIATION_UV) * 1e3).round() / 1e3).collect())
            .collect();
        let text = |row: &Vec<f64>| row.iter().map(|value| format!(",{value:?}")).collect::<String>().into_bytes();
        let binary = |row: &Vec<f64>| row.iter().flat_map(|&value| (value as f32).to_le_bytes()).collect();
        Self {
            n_channels: load.n_channels,
            n_chunk: load.n_chunk,
            is_binary: load.is_binary,
            dialect: load.dialect,
            opcode: load.dialect.opcode(load),
            sample_us: 1e6 / load.rate_hz,
            texts: rows.iter().map(text).collect(),
            binaries: rows.iter().map(binary).collect(),
            samples: Vec::new(),
            payload: Vec::new(),
        }
    }

    /// Write a relay's message, a whole frame; it is complete, and due, at `time_us` since 1970.
    pub fn write(&mut self, out: &mut Vec<u8>, relay: usize, message: u64, time_us: i64, mask: u32) {
        let first = message * self.n_chunk as u64;
        self.samples.clear();
        self.payload.clear();
        if self.is_binary {
            self.write_binary(relay, first, time_us);
        } else {
            self.write_text(relay, first, time_us);
        }
        self.dialect.publish(&mut self.payload, relay, &self.samples);
        frame::write(out, self.opcode, &self.payload, mask);
    }

    fn write_text(&mut self, relay: usize, index: u64, time_us: i64) {
        let (seconds, micros) = (time_us / 1_000_000, time_us % 1_000_000);
        let out = &mut self.samples;
        let _ = write!(out, r#"{{"type":"raw","timestamp":{seconds}.{micros:06},"channels":[{index}.0"#);
        if self.n_channels > 1 {
            let _ = write!(out, ",{relay}.0");
        }
        out.extend_from_slice(&self.texts[(index % N_TAILS) as usize]);
        out.extend_from_slice(b"]}");
    }

    fn write_binary(&mut self, relay: usize, first: u64, time_us: i64) {
        let first_us = time_us - ((self.n_chunk - 1) as f64 * self.sample_us) as i64;
        let out = &mut self.samples;
        out.extend_from_slice(&[1, 1, 1, 0]); // version, raw, float32, no flags
        out.extend_from_slice(&(self.n_channels as u16).to_le_bytes());
        out.extend_from_slice(&(self.n_chunk as u16).to_le_bytes());
        out.extend_from_slice(&first.to_le_bytes());
        out.extend_from_slice(&first_us.to_le_bytes());
        for index in first..first + self.n_chunk as u64 {
            out.extend_from_slice(&(index as f32).to_le_bytes());
            if self.n_channels > 1 {
                out.extend_from_slice(&(relay as f32).to_le_bytes());
            }
            out.extend_from_slice(&self.binaries[(index % N_TAILS) as usize]);
        }
    }
}
