//! The journal's frame of a `RawRecord`: its size and checksum (`log.py`), the record as msgpack (`records.py`),
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
    pub fence: i64,
    pub position: i64,
    pub end: i64,
    pub last_us: i64,
    pub pieces: Vec<&'a [u8]>,
    pub n_bytes: usize,
}

impl<'a> Rows<'a> {
    /// Read a record; None when it is no raw one, or one that only the twin reads.
    fn read(payload: &'a [u8]) -> Option<Self> {
        let mut pack = Pack(payload.strip_prefix(&[0x97, 0xa1, b'r'])?);
        let session_id = std::str::from_utf8(pack.string()?).ok()?;
        let [fence, position, end, last_us] = [pack.integer()?, pack.integer()?, pack.integer()?, pack.integer()?];
        let rows = pack.binary()?;
        let is_whole = pack.0.is_empty() && position < end;
        is_whole.then(|| Self { session_id, fence, position, end, last_us, pieces: vec![rows], n_bytes: rows.len() })
    }

    /// Whether `next` begins where this ends, and has rows of the same size.
    fn is_followed_by(&self, next: &Self) -> bool {
        let n_bytes = |rows: &Self, n: i64| rows.n_bytes as u128 * u128::from(n.unsigned_abs());
        let (n, n_next) = (self.end - self.position, next.end - next.position);
        self.end == next.position && n_bytes(self, n_next) == n_bytes(next, n)
    }

    fn join(&mut self, next: Self) {
        (self.end, self.last_us) = (next.end, next.last_us);
        self.pieces.extend(next.pieces);
        self.n_bytes += next.n_bytes;
    }
}

pub enum Record<'a> {
    Raw(Rows<'a>),
    Other(&'a [u8]), // its payload
}

/// Read the whole frames at the front of `data`, up to and with `max_others` that are not raw; return how many bytes
/// they take too. Raw that follows the raw before it in its session is joined to that.
pub fn split(data: &[u8], max_others: usize) -> (Vec<Record<'_>>, usize) {
    let mut found: Vec<Record> = Vec::new();
    let mut latest: HashMap<(&str, i64), usize> = HashMap::new(); // by session and fence, where its rows are
    let (mut rest, mut n_others) = (data, 0);
    while n_others < max_others {
        let Some((payload, behind)) = payload(rest) else { break };
        rest = behind;
        let Some(rows) = Rows::read(payload) else {
            found.push(Record::Other(payload));
            n_others += 1;
            continue;
        };
        let at = latest.entry((rows.session_id, rows.fence)).or_insert(found.len());
        match found.get_mut(*at) {
            Some(Record::Raw(before)) if before.is_followed_by(&rows) => before.join(rows),
            _ => {
                *at = found.len();
                found.push(Record::Raw(rows));
            }
        }
    }
    (found, data.len() - rest.len())
}

/// Return the payload of the frame at the front, and what is behind it; None unless it is whole and as it was written.
fn payload(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (header, rest) = data.split_first_chunk::<FRAME_HEADER>()?;
    let number = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (payload, behind) = rest.split_at_checked(number(0) as usize)?;
    (!payload.is_empty() && crc32fast::hash(payload) == number(4)).then_some((payload, behind))
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

    fn integer(&mut self) -> Option<i64> {
        match self.take(1)?[0] {
            small @ (0..0x80 | 0xe0..) => Some(i64::from(small as i8)),
            kind @ 0xcc..=0xcf => self.number(1 << (kind - 0xcc))?.try_into().ok(),
            0xd0 => Some(i64::from(self.number(1)? as i8)),
            0xd1 => Some(i64::from(self.number(2)? as i16)),
            0xd2 => Some(i64::from(self.number(4)? as i32)),
            0xd3 => Some(self.number(8)? as i64),
            _ => None,
        }
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let n_bytes = match self.take(1)?[0] {
            kind @ 0xa0..0xc0 => usize::from(kind & 0x1f),
            kind @ 0xd9..=0xdb => self.number(1 << (kind - 0xd9))? as usize,
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
        Run { position, times_us: (0..n as i64).map(|i| EPOCH_US + i).collect(), values: values.to_vec(), n_clamped: 0 }
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
        let (found, n_bytes) = split(&frames, 1);
        assert_eq!(n_bytes, frames.len());
        assert_eq!(spans(&found), [("one", 0, 0, 3), ("other", 300, 70_000, 70_001), ("one", 0, 9, 10)]);
        let Record::Raw(rows) = &found[0] else { panic!("expected raw") };
        assert_eq!((rows.pieces.len(), rows.n_bytes), (2, 3 * one.row.len()));
        assert_eq!(rows.last_us, EPOCH_US + 1);
        assert_eq!(split(&frames[..frames.len() - 1], 1).0.len(), 2);
    }

    #[test]
    fn what_is_damaged_ends_what_is_read() {
        let mut one = Template::new("one", [1; 16], "me", 2, 0);
        let mut frames = Vec::new();
        one.write(&run(0, &[1.0, 2.0]), &mut frames);
        let n_bytes = frames.len();
        one.write(&run(1, &[1.0, 2.0]), &mut frames);
        for at in n_bytes..frames.len() {
            let mut damaged = frames.clone();
            damaged[at] ^= 1;
            assert_eq!(split(&damaged, 1).1, n_bytes);
            assert_eq!(split(&frames[..at], 1).1, n_bytes);
        }
        assert_eq!(split(&[0; 40], 1).1, 0);
    }

    #[test]
    fn what_is_not_raw_is_handed_out_and_no_more_than_was_asked_for() {
        let mut one = Template::new("one", [1; 16], "me", 2, 0);
        let mut frames = Vec::new();
        one.write(&run(0, &[1.0, 2.0]), &mut frames);
        for payload in [b"\x93\xa1g\x01".as_slice(), b"\x97\xa1r\x01", b"\xff"] {
            frames.extend((payload.len() as u32).to_le_bytes());
            frames.extend(crc32fast::hash(payload).to_le_bytes());
            frames.extend(payload);
        }
        one.write(&run(1, &[1.0, 2.0]), &mut frames);
        let (found, n_bytes) = split(&frames, 10);
        assert_eq!((found.len(), n_bytes), (4, frames.len()));
        assert_eq!(spans(&found), [("one", 0, 0, 2)]);
        assert!(matches!(found[3], Record::Other(b"\xff")));
        assert_eq!(split(&frames, 2).0.len(), 3);
    }

    #[test]
    fn rows_of_another_size_are_not_joined() {
        let mut frames = Vec::new();
        Template::new("one", [1; 16], "me", 2, 0).write(&run(0, &[1.0, 2.0]), &mut frames);
        let wider = Run { values: vec![1.0; 3], ..run(1, &[1.0, 2.0]) };
        Template::new("one", [1; 16], "me", 3, 0).write(&wider, &mut frames);
        assert_eq!(spans(&split(&frames, 1).0), [("one", 0, 0, 1), ("one", 0, 1, 2)]);
    }

    #[test]
    fn integers_of_every_size_are_read() {
        for (pack, number) in [
            (b"\x7f".as_slice(), 127),
            (b"\xff", -1),
            (b"\xe0", -32),
            (b"\xcc\xff", 255),
            (b"\xd0\x80", -128),
            (b"\xd1\x80\x00", -32_768),
            (b"\xd2\x80\x00\x00\x00", -(1 << 31)),
            (b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00", i64::MIN),
        ] {
            assert_eq!(Pack(pack).integer(), Some(number));
        }
        assert_eq!(Pack(b"\xcf\x80\x00\x00\x00\x00\x00\x00\x00").integer(), None);
        assert_eq!(Pack(b"\xc0").integer(), None);
    }

    fn spans<'a>(found: &[Record<'a>]) -> Vec<(&'a str, i64, i64, i64)> {
        let rows = found.iter().filter_map(|record| match record {
            Record::Raw(rows) => Some(rows),
            Record::Other(_) => None,
        });
        rows.map(|rows| (rows.session_id, rows.fence, rows.position, rows.end)).collect()
    }
}
