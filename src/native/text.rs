//! Samples as the JSON messages that `chunk.py` makes of them.

use crate::frame::text_header;
use crate::session::Run;

/// Times from here on have no exponent, in Python's `repr` nor in ours.
pub const PLAIN_TIME_US: i64 = 100;

/// Whether a time is written as Python's `repr` writes it: all but what is nearly 0.
pub fn is_plain(time_us: &i64) -> bool {
    *time_us == 0 || time_us.unsigned_abs() >= PLAIN_TIME_US as u64
}

/// Append the original message of each sample, as a WebSocket frame; `prefix` is the message up to its position.
pub fn write(run: &Run, prefix: &[u8], scratch: &mut Vec<u8>, out: &mut Vec<u8>) {
    for i in 0..run.times_us.len() {
        scratch.clear();
        sample(run, i, prefix, scratch);
        text_header(scratch.len(), out);
        out.extend_from_slice(scratch);
    }
}

/// Append the original message of the i-th sample.
pub fn sample(run: &Run, i: usize, prefix: &[u8], out: &mut Vec<u8>) {
    let n_channels = run.n_channels();
    head(prefix, run.position + i as i64, run.times_us[i], out);
    out.extend_from_slice(b",\"channels\":");
    list(&run.values[i * n_channels..][..n_channels], microvolts, out);
    out.push(b'}');
}

/// Append one message for all samples.
pub fn chunk(run: &Run, prefix: &[u8], out: &mut Vec<u8>) {
    head(prefix, run.position, run.times_us[0], out);
    out.extend_from_slice(b",\"samples\":");
    list(run.values.chunks_exact(run.n_channels()), |row, out| list(row, microvolts, out), out);
    out.push(b'}');
}

fn head(prefix: &[u8], position: i64, time_us: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(prefix);
    integer(position, out);
    out.extend_from_slice(b",\"timestamp\":");
    out.extend_from_slice(zmij::Buffer::new().format_finite(seconds(time_us)).as_bytes());
}

fn seconds(time_us: i64) -> f64 {
    time_us as f64 / 1e6
}

fn list<T>(items: impl IntoIterator<Item = T>, write: impl Fn(T, &mut Vec<u8>), out: &mut Vec<u8>) {
    out.push(b'[');
    for (i, item) in items.into_iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write(item, out);
    }
    out.push(b']');
}

fn microvolts(value: &f32, out: &mut Vec<u8>) {
    if value.is_finite() {
        out.extend_from_slice(zmij::Buffer::new().format_finite(*value).as_bytes());
    } else {
        out.extend_from_slice(b"null");
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

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> Run {
        let values = vec![1.0, f32::NAN, -0.0, 1e16, 1e-7, 0.1];
        Run { position: 9, times_us: vec![1_764_000_000_123_456, 1_764_000_001_000_000], values, n_clamped: 0 }
    }

    fn text(write: impl Fn(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_sample_is_a_message() {
        assert_eq!(
            text(|out| sample(&run(), 0, b"{\"position\":", out)),
            "{\"position\":9,\"timestamp\":1764000000.123456,\"channels\":[1.0,null,-0.0]}"
        );
        assert_eq!(
            text(|out| sample(&run(), 1, b"{\"position\":", out)),
            "{\"position\":10,\"timestamp\":1764000001.0,\"channels\":[1e+16,1e-7,0.1]}"
        );
    }

    #[test]
    fn a_chunk_is_a_message_with_the_time_of_its_first_sample() {
        assert_eq!(
            text(|out| chunk(&run(), b"{\"position\":", out)),
            "{\"position\":9,\"timestamp\":1764000000.123456,\"samples\":[[1.0,null,-0.0],[1e+16,1e-7,0.1]]}"
        );
    }

    #[test]
    fn a_frame_is_a_header_and_a_message() {
        let (mut scratch, mut out) = (Vec::new(), Vec::new());
        write(&run(), b"{", &mut scratch, &mut out);
        let first = text(|out| sample(&run(), 0, b"{", out));
        assert_eq!(out[..2 + first.len()], [&[0x81, first.len() as u8], first.as_bytes()].concat());
        assert!(out.ends_with(&scratch));
    }

    #[test]
    fn times_have_no_exponent_but_those_that_are_nearly_0() {
        for time_us in [0, PLAIN_TIME_US, -PLAIN_TIME_US, i64::MAX, i64::MIN] {
            assert!(is_plain(&time_us));
            assert!(!zmij::Buffer::new().format(seconds(time_us)).contains('e'), "{time_us}");
        }
        for time_us in [1, PLAIN_TIME_US - 1, -1, 1 - PLAIN_TIME_US] {
            assert!(!is_plain(&time_us));
        }
    }
}
