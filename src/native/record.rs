//! The journal's frame of a `RawRecord`: its size and checksum (`segments.py`), the record as msgpack (`records.py`),
//! in it the rows of PostgreSQL's binary COPY (`pgcopy.py`).

use std::collections::HashMap;

use crate::session::Run;

const EPOCH_US: i64 = 946_684_800_000_000; // 2000-01-01, from which PostgreSQL counts
const FRAME_HEADER: usize = 8;
const FLOAT4_OID: i32 = 700;

/// What is the same in all records and rows of a session.
pub struct Template {
    session_id: Vec<u8>, // as text
    fence: i64,
    row: Vec<u8>,
    position_at: usize,
    values_at: usize,
}

const TIME_AT: usize = 6;

impl Template {
    pub fn new(session_id: &str, session: [u8; 16], user_id: &str, n_channels: usize, fence: i64) -> Self {
        let mut row = Vec::new();
        row.extend(5i16.to_be_bytes());
        row.extend(8i32.to_be_bytes());
        row.extend(0i64.to_be_bytes());
        field(&mut row, &session);
        field(&mut row, user_id.as_bytes());
        row.extend(8i32.to_be_bytes());
        let position_at = row.len();
        row.extend(0i64.to_be_bytes());
        row.extend((20 + 8 * n_channels as i32).to_be_bytes());
        for number in [1, 0, FLOAT4_OID, n_channels as i32, 1] {
            row.extend(number.to_be_bytes());
        }
        let values_at = row.len();
        for _ in 0..n_channels {
            field(&mut row, &[0; 4]);
        }
        Self { session_id: session_id.as_bytes().to_vec(), fence, row, position_at, values_at }
    }

    /// Append the frame of a run to `out`.
    pub fn write(&mut self, run: &Run, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend([0; FRAME_HEADER]);
        let n_rows = run.times_us.len();
        out.extend([0x97, 0xa1, b'r']);
        string(out, &self.session_id);
        for number in [self.fence, run.position, run.end(), run.times_us[n_rows - 1]] {
            unsigned(out, number as u64);
        }
        binary_header(out, n_rows * self.row.len());
        let n_channels = run.values.len() / n_rows;
        for (i, (time_us, values)) in run.times_us.iter().zip(run.values.chunks_exact(n_channels)).enumerate() {
            let position = run.position + i as i64;
            self.row[TIME_AT..TIME_AT + 8].copy_from_slice(&(time_us - EPOCH_US).to_be_bytes());
            self.row[self.position_at..self.position_at + 8].copy_from_slice(&position.to_be_bytes());
            for (field, value) in self.row[self.values_at..].chunks_exact_mut(8).zip(values) {
                field[4..].copy_from_slice(&value.to_be_bytes());
            }
            out.extend_from_slice(&self.row);
        }
        let payload = &out[start + FRAME_HEADER..];
        let (n_bytes, checksum) = (payload.len() as u32, crc32fast::hash(payload));
        out[start..start + 4].copy_from_slice(&n_bytes.to_le_bytes());
        out[start + 4..start + 8].copy_from_slice(&checksum.to_le_bytes());
    }
}

fn field(row: &mut Vec<u8>, value: &[u8]) {
    row.extend((value.len() as i32).to_be_bytes());
    row.extend(value);
}

fn string(out: &mut Vec<u8>, text: &[u8]) {
    match text.len() {
        n @ 0..32 => out.push(0xa0 | n as u8),
        n => out.extend([0xd9, n as u8]),
    }
    out.extend_from_slice(text);
}

fn unsigned(out: &mut Vec<u8>, number: u64) {
    match number {
        0..0x80 => out.push(number as u8),
        0x80..0x100 => out.extend([0xcc, number as u8]),
        0x100..0x1_0000 => {
            out.push(0xcd);
            out.extend((number as u16).to_be_bytes());
        }
        0x1_0000..0x1_0000_0000 => {
            out.push(0xce);
            out.extend((number as u32).to_be_bytes());
        }
        _ => {
            out.push(0xcf);
            out.extend(number.to_be_bytes());
        }
    }
}

fn binary_header(out: &mut Vec<u8>, n_bytes: usize) {
    match n_bytes {
        0..0x100 => out.extend([0xc4, n_bytes as u8]),
        0x100..0x1_0000 => {
            out.push(0xc5);
            out.extend((n_bytes as u16).to_be_bytes());
        }
        _ => {
            out.push(0xc6);
            out.extend((n_bytes as u32).to_be_bytes());
        }
    }
}

/// Samples of one session that follow each other, as the journal has them.
pub struct Rows<'a> {
    pub session_id: &'a str,
    pub fence: u64,
    pub position: u64,
    pub end: u64,
    pub last_us: u64,
    pub rows: Vec<u8>,
}

/// Read whole frames, all of them raw records, and join what follows; None when there is anything else among them.
pub fn join(mut frames: &[u8]) -> Option<Vec<Rows<'_>>> {
    let mut found: Vec<Rows> = Vec::new();
    let mut last: HashMap<(&str, u64), usize> = HashMap::new(); // by session and fence, its latest rows
    while !frames.is_empty() {
        let n_bytes = u32::from_le_bytes(frames.get(..4)?.try_into().ok()?) as usize;
        let record = frames.get(FRAME_HEADER..FRAME_HEADER + n_bytes)?;
        frames = &frames[FRAME_HEADER + n_bytes..];
        let mut pack = Pack(record.strip_prefix(&[0x97, 0xa1, b'r'])?);
        let session_id = std::str::from_utf8(pack.string()?).ok()?;
        let [fence, position, end, last_us] = [pack.unsigned()?, pack.unsigned()?, pack.unsigned()?, pack.unsigned()?];
        let rows = pack.binary()?;
        match last.get(&(session_id, fence)).map(|&i| &mut found[i]).filter(|before| before.end == position) {
            Some(before) => {
                (before.end, before.last_us) = (end, last_us);
                before.rows.extend_from_slice(rows);
            }
            None => {
                last.insert((session_id, fence), found.len());
                found.push(Rows { session_id, fence, position, end, last_us, rows: rows.to_vec() });
            }
        }
    }
    Some(found)
}

/// What of msgpack a raw record is made of.
struct Pack<'a>(&'a [u8]);

impl<'a> Pack<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self, n_bytes: usize) -> Option<u64> {
        Some(self.take(n_bytes)?.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    fn unsigned(&mut self) -> Option<u64> {
        match self.take(1)?[0] {
            small @ 0..0x80 => Some(u64::from(small)),
            kind @ 0xcc..=0xcf => self.number(1 << (kind - 0xcc)),
            _ => None,
        }
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let n_bytes = match self.take(1)?[0] {
            kind @ 0xa0..0xc0 => usize::from(kind & 0x1f),
            0xd9 => self.number(1)? as usize,
            _ => return None,
        };
        self.take(n_bytes)
    }

    fn binary(&mut self) -> Option<&'a [u8]> {
        let kind = self.take(1)?[0];
        if !(0xc4..=0xc6).contains(&kind) {
            return None;
        }
        let n_bytes = self.number(1 << (kind - 0xc4))? as usize;
        self.take(n_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(position: i64, values: &[f32]) -> Run {
        let n = values.len() / 2;
        Run { position, times_us: (0..n as i64).map(|i| EPOCH_US + i).collect(), values: values.to_vec() }
    }

    #[test]
    fn what_follows_is_joined_and_what_does_not_is_not() {
        let mut one = Template::new("one", [1; 16], "me", 2, 0);
        let mut other = Template::new("other", [2; 16], "you", 2, 300);
        let mut frames = Vec::new();
        one.write(&run(0, &[1.0, 2.0]), &mut frames);
        other.write(&run(70_000, &[3.0, 4.0]), &mut frames);
        one.write(&run(1, &[5.0, 6.0, 7.0, 8.0]), &mut frames);
        one.write(&run(9, &[9.0, 9.0]), &mut frames);
        let found = join(&frames).unwrap();
        let spans: Vec<_> = found.iter().map(|rows| (rows.session_id, rows.fence, rows.position, rows.end)).collect();
        assert_eq!(spans, [("one", 0, 0, 3), ("other", 300, 70_000, 70_001), ("one", 0, 9, 10)]);
        assert_eq!(found[0].rows.len(), 3 * one.row.len());
        assert_eq!(found[0].last_us, EPOCH_US as u64 + 1);
        assert!(join(&frames[..frames.len() - 1]).is_none());
    }
}
