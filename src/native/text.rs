//! The original JSON message of each sample, as a WebSocket frame: what `chunk.py` and `protocol.py` make.

use crate::frame::text_header;
use crate::session::Run;

/// Times from here on have no exponent, in Python's `repr` nor in ours.
pub const PLAIN_TIME_US: i64 = 1_000;

/// Append a frame per sample to `out`; `prefix` is the message up to its position.
pub fn write(run: &Run, prefix: &[u8], scratch: &mut Vec<u8>, out: &mut Vec<u8>) {
    let n_channels = run.values.len() / run.times_us.len();
    for (i, (&time_us, values)) in run.times_us.iter().zip(run.values.chunks_exact(n_channels)).enumerate() {
        scratch.clear();
        scratch.extend_from_slice(prefix);
        integer(run.position + i as i64, scratch);
        scratch.extend_from_slice(b",\"timestamp\":");
        scratch.extend_from_slice(ryu::Buffer::new().format_finite(time_us as f64 / 1e6).as_bytes());
        scratch.extend_from_slice(b",\"channels\":[");
        for (channel, &value) in values.iter().enumerate() {
            if channel > 0 {
                scratch.push(b',');
            }
            if value.is_nan() {
                scratch.extend_from_slice(b"null");
            } else {
                microvolts(value, scratch);
            }
        }
        scratch.extend_from_slice(b"]}");
        text_header(scratch.len(), out);
        out.extend_from_slice(scratch);
    }
}

/// As orjson does: a positive exponent has its sign.
fn microvolts(value: f32, out: &mut Vec<u8>) {
    let mut buffer = ryu::Buffer::new();
    let text = buffer.format_finite(value);
    match text.split_once('e') {
        Some((digits, exponent)) if !exponent.starts_with('-') => {
            out.extend_from_slice(digits.as_bytes());
            out.extend_from_slice(b"e+");
            out.extend_from_slice(exponent.as_bytes());
        }
        _ => out.extend_from_slice(text.as_bytes()),
    }
}

fn integer(number: i64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let (mut at, mut rest) = (digits.len(), number);
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}
