//! The frames of RFC 6455: a client's are written, a server's are read.

use std::ops::Range;

pub const TEXT: u8 = 0x81; // and below, with FIN
pub const BINARY: u8 = 0x82;
pub const CLOSE: u8 = 0x88;
pub const PING: u8 = 0x89;
pub const PONG: u8 = 0x8a;

const MASKED: u8 = 0x80;

/// Append a message, masked as a client's has to be.
pub fn write(out: &mut Vec<u8>, opcode: u8, payload: &[u8], mask: u32) {
    match payload.len() {
        n if n < 126 => out.extend_from_slice(&[opcode, MASKED | n as u8]),
        n if n < 1 << 16 => {
            out.extend_from_slice(&[opcode, MASKED | 126]);
            out.extend_from_slice(&(n as u16).to_be_bytes());
        }
        n => {
            out.extend_from_slice(&[opcode, MASKED | 127]);
            out.extend_from_slice(&(n as u64).to_be_bytes());
        }
    }
    let mask = mask.to_be_bytes();
    out.extend_from_slice(&mask);
    let start = out.len();
    out.extend_from_slice(payload);
    let twice = u64::from_ne_bytes([mask, mask].concat().try_into().expect("8 bytes"));
    let mut eights = out[start..].chunks_exact_mut(8);
    for eight in &mut eights {
        let masked = u64::from_ne_bytes((&*eight).try_into().expect("8 bytes")) ^ twice;
        eight.copy_from_slice(&masked.to_ne_bytes());
    }
    for (byte, key) in eights.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

/// The opcode of the first frame and where its payload lies; None until all of it is there.
pub fn read(data: &[u8]) -> Option<(u8, Range<usize>)> {
    let (opcode, size) = (*data.first()?, *data.get(1)?);
    let (start, n): (usize, usize) = match size {
        126 => (4, u16::from_be_bytes(data.get(2..4)?.try_into().ok()?) as usize),
        127 => (10, u64::from_be_bytes(data.get(2..10)?.try_into().ok()?) as usize),
        n => (2, n as usize),
    };
    let end = start.checked_add(n)?;
    (end <= data.len()).then_some((opcode, start..end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_masked_frame_has_its_length_and_gives_its_payload_back() {
        for n in [0, 1, 7, 8, 125, 126, 1000, 65_535, 65_536] {
            let payload: Vec<u8> = (0..n).map(|i| (i * 7) as u8).collect();
            let mut out = Vec::new();
            write(&mut out, BINARY, &payload, 0x0102_0304);
            let start = out.len() - n - 4;
            assert_eq!(out[start..start + 4], [1, 2, 3, 4]);
            let unmasked: Vec<u8> =
                out[start + 4..].iter().enumerate().map(|(i, byte)| byte ^ (i % 4 + 1) as u8).collect();
            assert_eq!(unmasked, payload);
            out.drain(start..start + 4);
            out[1] &= !MASKED;
            assert_eq!(read(&out), Some((BINARY, start..start + n)));
            assert_eq!(read(&out[..out.len() - 1]), None);
        }
    }
}
