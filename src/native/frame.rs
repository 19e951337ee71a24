//! The header of a WebSocket frame, and its mask (RFC 6455, 5.2 and 5.3).

/// What stands before a payload. `n_bytes` is the header's own size.
pub struct Header {
    pub fin: bool,
    pub opcode: u8,
    pub is_plain: bool, // no reserved bit, masked, its length in the shortest form and not too much
    pub mask: [u8; 4],
    pub n_bytes: usize,
    pub n_payload: u64,
}

pub const CONTINUATION: u8 = 0;
pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CONTROL: u8 = 8; // and above
pub const PONG: u8 = 10;

/// Read a header; None when it is not all there yet. The standard parser does not wait for the rest of one whose opcode
/// is unknown, that is not masked or has more than `max_payload` bytes: then neither do we.
pub fn header(data: &[u8], max_payload: u64) -> Option<Header> {
    let (&first, &second) = (data.first()?, data.get(1)?);
    let opcode = first & 0x0f;
    if matches!(opcode, 3..=7 | 11..) || second & 0x80 == 0 {
        return Some(Header { fin: true, opcode, is_plain: false, mask: [0; 4], n_bytes: 2, n_payload: u64::MAX });
    }
    let (n_length, shortest) = match second & 0x7f {
        126 => (2, 126),
        127 => (8, 1 << 16),
        _ => (0, 0),
    };
    let n_payload = match n_length {
        0 => u64::from(second & 0x7f),
        _ => data.get(2..2 + n_length)?.iter().fold(0, |n, &byte| n << 8 | u64::from(byte)),
    };
    let n_bytes = 6 + n_length;
    let mask = match data.get(n_bytes - 4..n_bytes) {
        Some(mask) => mask.try_into().ok()?,
        None if n_payload > max_payload => [0; 4],
        None => return None,
    };
    let is_plain = first & 0x70 == 0 && (shortest..=max_payload).contains(&n_payload);
    Some(Header { fin: first & 0x80 != 0, opcode, is_plain, mask, n_bytes, n_payload })
}

/// Take the mask off a payload, into `plain`.
pub fn unmask(masked: &[u8], mask: [u8; 4], plain: &mut Vec<u8>) {
    plain.clear();
    plain.reserve(masked.len());
    let words = masked.chunks_exact(8);
    let rest = words.remainder();
    let wide = u64::from_ne_bytes([mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3]]);
    for word in words {
        let word: [u8; 8] = word.try_into().expect("eight bytes");
        plain.extend_from_slice(&(u64::from_ne_bytes(word) ^ wide).to_ne_bytes());
    }
    plain.extend(rest.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
}

/// Write the header of a server's text message, which is neither masked nor fragmented.
pub fn text_header(n_payload: usize, out: &mut Vec<u8>) {
    out.push(0x80 | TEXT);
    match n_payload {
        0..126 => out.push(n_payload as u8),
        126..0x1_0000 => {
            out.push(126);
            out.extend_from_slice(&(n_payload as u16).to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(n_payload as u64).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_once_it_is_all_there() {
        let frame = [0x81, 0xfe, 0x01, 0x00, 1, 2, 3, 4, b'x'];
        for n in 0..8 {
            assert!(header(&frame[..n], 256).is_none());
        }
        let header = header(&frame, 256).unwrap();
        assert!(header.fin && header.is_plain && header.opcode == TEXT);
        assert_eq!((header.n_bytes, header.n_payload, header.mask), (8, 256, [1, 2, 3, 4]));
    }

    #[test]
    fn what_is_odd_is_not_plain() {
        for frame in [[0xc1, 0x80, 0, 0, 0, 0, 0, 0], [0x81, 0x05, 0, 0, 0, 0, 0, 0], [0x81, 0xfe, 0, 125, 0, 0, 0, 0]]
        {
            assert!(!header(&frame, 1000).unwrap().is_plain);
        }
    }

    #[test]
    fn what_breaks_a_rule_is_not_waited_for() {
        for frame in [&[0x83, 0xff][..], &[0x81, 0x7e], &[0x82, 0xfe, 0x01, 0x01]] {
            assert!(!header(frame, 256).unwrap().is_plain);
        }
        assert!(header(&[0x82, 0xfe, 0x01, 0x00], 256).is_none());
    }

    #[test]
    fn a_mask_goes_round_and_round() {
        let plain: Vec<u8> = (0..100).collect();
        let mask = [7, 0, 255, 33];
        for n in 0..plain.len() {
            let masked: Vec<u8> = plain[..n].iter().enumerate().map(|(i, byte)| byte ^ mask[i % 4]).collect();
            let mut found = vec![1, 2, 3];
            unmask(&masked, mask, &mut found);
            assert_eq!(found, plain[..n]);
        }
    }
}
