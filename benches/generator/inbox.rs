//! What one consumer got: whether every sample of its relay came once and in order.

use crate::load::Load;

const START: &[u8] = br#""channels":["#;

/// Consecutive samples that came in one message.
#[derive(Debug, PartialEq)]
pub struct Came {
    pub first: u64,
    pub n: u64,
}

pub struct Inbox {
    who: Vec<u8>, // what follows the index in every sample
    relay: f32,
    n_channels: usize,
    next: u64,
    pub n_received: u64,
    pub n_repeated: u64,
    n_skipped: u64,
}

impl Inbox {
    pub fn new(load: &Load, relay: usize) -> Self {
        let who = if load.n_channels > 1 { format!(".0,{relay}.0") } else { ".0".to_owned() };
        Self {
            who: who.into_bytes(),
            relay: relay as f32,
            n_channels: load.n_channels,
            next: 0,
            n_received: 0,
            n_repeated: 0,
            n_skipped: 0,
        }
    }

    /// Take a raw message; None for one that is none of this consumer's relay.
    pub fn take(&mut self, payload: &[u8], is_binary: bool) -> Option<Came> {
        let came = if is_binary { self.read_binary(payload) } else { self.read_text(payload) }?;
        self.n_received += came.n;
        self.n_skipped += came.first.saturating_sub(self.next);
        self.n_repeated += self.next.min(came.first + came.n).saturating_sub(came.first);
        self.next = self.next.max(came.first + came.n);
        Some(came)
    }

    /// Whether nothing more is to come.
    pub fn is_full(&self, n_samples: u64) -> bool {
        self.next >= n_samples
    }

    /// Samples that did not come, or too late to be in order.
    pub fn n_lost(&self, n_samples: u64) -> u64 {
        self.n_skipped + n_samples.saturating_sub(self.next)
    }

    fn read_text(&self, payload: &[u8]) -> Option<Came> {
        let start = payload.windows(START.len()).position(|window| window == START)? + START.len();
        let n_digits = payload[start..].iter().position(|byte| !byte.is_ascii_digit())?;
        let dot = start + n_digits;
        let first = std::str::from_utf8(&payload[start..dot]).ok()?.parse().ok()?;
        payload[dot..].starts_with(&self.who).then_some(Came { first, n: 1 })
    }

    fn read_binary(&self, payload: &[u8]) -> Option<Came> {
        let (header, values) = payload.split_at_checked(24)?;
        let n_channels = usize::from(u16::from_le_bytes(header[4..6].try_into().ok()?));
        let n = usize::from(u16::from_le_bytes(header[6..8].try_into().ok()?));
        let first = u64::from_le_bytes(header[8..16].try_into().ok()?);
        if n_channels != self.n_channels || values.len() != 4 * n_channels * n {
            return None;
        }
        let value = |at: usize| f32::from_le_bytes(values[4 * at..4 * at + 4].try_into().expect("4 bytes"));
        let is_mine = (0..n).all(|i| {
            let at = i * n_channels;
            value(at) == (first + i as u64) as f32 && (n_channels == 1 || value(at + 1) == self.relay)
        });
        is_mine.then_some(Came { first, n: n as u64 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inbox(is_binary: bool) -> Inbox {
        let text = format!(
            r#"{{"port":1,"dialect":"zander","relays":9,"consumers":1,"listened":1,"stalled":0,"rate_hz":8,"n_channels":3,"format":"{}","n_chunk":1,
            "duration_s":1,"warmup_s":0,"seed":1}}"#,
            if is_binary { "binary" } else { "json" }
        );
        Inbox::new(&Load::read(&text).unwrap(), 7)
    }

    fn text(index: u64, relay: u64) -> String {
        format!(r#"{{"type":"raw","position":{index},"channels":[{index}.0,{relay}.0,-1.5]}}"#)
    }

    #[test]
    fn a_hole_a_repeat_and_an_end_that_is_missing_count() {
        for (indices, n_lost, n_repeated) in [
            (vec![0, 1, 2, 3], 0, 0),
            (vec![0, 1, 3], 1, 0),
            (vec![0, 1, 1, 2, 3], 0, 1),
            (vec![0, 2, 1, 3], 1, 1),
            (vec![0, 1], 2, 0),
            (vec![], 4, 0),
        ] {
            let mut inbox = inbox(false);
            for &index in &indices {
                assert_eq!(inbox.take(text(index, 7).as_bytes(), false), Some(Came { first: index, n: 1 }));
            }
            assert_eq!((inbox.n_lost(4), inbox.n_repeated), (n_lost, n_repeated), "{indices:?}");
        }
    }

    #[test]
    fn a_stranger_is_noticed() {
        assert_eq!(inbox(false).take(text(0, 70).as_bytes(), false), None);
        assert_eq!(inbox(false).take(br#"{"type":"gap"}"#, false), None);
    }

    #[test]
    fn a_chunk_is_read_as_it_is_written() {
        let mut payload = vec![1, 1, 1, 0, 3, 0, 2, 0];
        payload.extend_from_slice(&[5u64.to_le_bytes(), 0u64.to_le_bytes()].concat());
        for value in [5.0f32, 7.0, -1.5, 6.0, 7.0, -2.5] {
            payload.extend_from_slice(&value.to_le_bytes());
        }
        assert_eq!(inbox(true).take(&payload, true), Some(Came { first: 5, n: 2 }));
        payload[24 + 3 * 4 + 2] ^= 0x40; // another index in the second sample
        assert_eq!(inbox(true).take(&payload, true), None);
    }
}
