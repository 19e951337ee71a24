//! The two raw messages, read strictly. Whatever is not plainly one of them, the Python twin (`wire/codec.py`) judges.

const MAX_POSITION: i64 = (1 << 53) - 1;
const MAX_MICROVOLTS: f64 = 3.402_823_567_797_336_2e38; // the last double that still becomes a float32
const MAX_SECONDS: f64 = 1e12;
const BINARY_HEADER: usize = 24;

/// Samples of one message: `values` are `n_samples` rows of the session's channels, in µV.
#[derive(Default, Debug, PartialEq)]
pub struct Raw {
    pub position: Option<i64>,
    pub time_us: Option<i64>,
    pub n_samples: usize,
    pub values: Vec<f32>,
}

impl Raw {
    fn clear(&mut self) {
        self.position = None;
        self.time_us = None;
        self.n_samples = 0;
        self.values.clear();
    }
}

/// Read the binary chunk; None when there is anything to say about it.
pub fn read_binary(data: &[u8], n_channels: usize, raw: &mut Raw) -> Option<()> {
    raw.clear();
    let (header, values) = data.split_at_checked(BINARY_HEADER)?;
    let n_samples = usize::from(u16::from_le_bytes(header[6..8].try_into().ok()?));
    let position = i64::from_le_bytes(header[8..16].try_into().ok()?);
    let time_us = i64::from_le_bytes(header[16..24].try_into().ok()?);
    let fits = header[..4] == [1, 1, 1, 0]
        && usize::from(u16::from_le_bytes(header[4..6].try_into().ok()?)) == n_channels
        && n_samples > 0
        && values.len() == 4 * n_samples * n_channels
        && (-1..=MAX_POSITION).contains(&position);
    if !fits {
        return None;
    }
    raw.values.reserve(values.len() / 4);
    for value in values.chunks_exact(4) {
        let value = f32::from_le_bytes(value.try_into().ok()?);
        if value.is_infinite() {
            return None;
        }
        raw.values.push(value);
    }
    raw.position = (position >= 0).then_some(position);
    raw.time_us = (time_us != i64::MIN).then_some(time_us);
    raw.n_samples = n_samples;
    Some(())
}

/// Read a JSON message of type `raw`; None when it is another, or there is anything unusual about it.
pub fn read_json(data: &[u8], n_channels: usize, raw: &mut Raw) -> Option<()> {
    raw.clear();
    let mut text = Text { data, at: 0 };
    let (mut is_raw, mut has_position, mut has_time) = (false, false, false);
    text.expect(b'{')?;
    loop {
        match text.name()? {
            b"type" if !is_raw => {
                is_raw = text.name_of_type()? == b"raw";
                if !is_raw {
                    return None;
                }
            }
            b"channels" if raw.n_samples == 0 => {
                text.row(n_channels, &mut raw.values)?;
                raw.n_samples = 1;
            }
            b"samples" if raw.n_samples == 0 => raw.n_samples = text.rows(n_channels, &mut raw.values)?,
            b"position" if !has_position => {
                has_position = true;
                raw.position = text.position()?;
            }
            b"timestamp" if !has_time => {
                has_time = true;
                raw.time_us = text.time_us()?;
            }
            _ => return None,
        }
        match text.next()? {
            b',' => {}
            b'}' => break,
            _ => return None,
        }
    }
    text.skip_space();
    (is_raw && raw.n_samples > 0 && text.at == data.len()).then_some(())
}

struct Text<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Text<'a> {
    fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.data.get(self.at) {
            self.at += 1;
        }
    }

    fn peek(&mut self) -> Option<u8> {
        self.skip_space();
        self.data.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    /// A string of lower-case letters.
    fn word(&mut self) -> Option<&'a [u8]> {
        self.expect(b'"')?;
        let start = self.at;
        while self.data.get(self.at)?.is_ascii_lowercase() {
            self.at += 1;
        }
        self.at += 1;
        (self.data[self.at - 1] == b'"').then_some(&self.data[start..self.at - 1])
    }

    fn name(&mut self) -> Option<&'a [u8]> {
        let name = self.word()?;
        self.expect(b':')?;
        Some(name)
    }

    fn name_of_type(&mut self) -> Option<&'a [u8]> {
        self.word()
    }

    fn is_null(&mut self) -> Option<bool> {
        if self.peek()? != b'n' {
            return Some(false);
        }
        let is_null = self.data[self.at..].starts_with(b"null");
        self.at += 4;
        is_null.then_some(true)
    }

    fn rows(&mut self, n_channels: usize, values: &mut Vec<f32>) -> Option<usize> {
        self.expect(b'[')?;
        let mut n = 0;
        loop {
            self.row(n_channels, values)?;
            n += 1;
            match self.next()? {
                b',' => {}
                b']' => return Some(n),
                _ => return None,
            }
        }
    }

    fn row(&mut self, n_channels: usize, values: &mut Vec<f32>) -> Option<()> {
        self.expect(b'[')?;
        for i in 0..n_channels {
            if i > 0 {
                self.expect(b',')?;
            }
            values.push(self.microvolts()?);
        }
        self.expect(b']')
    }

    /// A sample's value, rounded twice as in Python: to a double, then to a float32.
    fn microvolts(&mut self) -> Option<f32> {
        if self.is_null()? {
            return Some(f32::NAN);
        }
        let value = self.number()?;
        (value.abs() <= MAX_MICROVOLTS).then_some(value as f32)
    }

    fn position(&mut self) -> Option<Option<i64>> {
        if self.is_null()? {
            return Some(None);
        }
        let digits = self.number_text()?;
        if digits.len() > 16 || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let position = digits.iter().fold(0, |n, digit| n * 10 + i64::from(digit - b'0'));
        (position <= MAX_POSITION).then_some(Some(position))
    }

    fn time_us(&mut self) -> Option<Option<i64>> {
        if self.is_null()? {
            return Some(None);
        }
        let seconds = self.number()?;
        (seconds.abs() <= MAX_SECONDS).then_some(Some((seconds * 1e6).round_ties_even() as i64))
    }

    fn number(&mut self) -> Option<f64> {
        let text = self.number_text()?;
        if text == b"-0" {
            return Some(0.0); // an integer in Python, which has no sign of zero
        }
        std::str::from_utf8(text).ok()?.parse().ok()
    }

    /// A number by JSON's grammar.
    fn number_text(&mut self) -> Option<&'a [u8]> {
        self.skip_space();
        let start = self.at;
        self.skip_if(|byte| byte == b'-');
        if !self.skip_if(|byte| byte == b'0') {
            self.digits()?;
        }
        if self.skip_if(|byte| byte == b'.') {
            self.digits()?;
        }
        if self.skip_if(|byte| byte | 0x20 == b'e') {
            self.skip_if(|byte| byte == b'+' || byte == b'-');
            self.digits()?;
        }
        Some(&self.data[start..self.at])
    }

    fn skip_if(&mut self, condition: impl Fn(u8) -> bool) -> bool {
        let found = self.data.get(self.at).is_some_and(|&byte| condition(byte));
        self.at += usize::from(found);
        found
    }

    fn digits(&mut self) -> Option<()> {
        let start = self.at;
        while self.data.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        (self.at > start).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Option<Raw> {
        let mut raw = Raw::default();
        read_json(text.as_bytes(), 2, &mut raw).map(|()| raw)
    }

    #[test]
    fn the_usual_messages_are_read() {
        let raw = json(r#" {"type": "raw", "timestamp": 1.5, "channels": [1, -2.5e1]} "#).unwrap();
        assert_eq!(raw, Raw { position: None, time_us: Some(1_500_000), n_samples: 1, values: vec![1.0, -25.0] });
        let raw = json(r#"{"type":"raw","position":7,"samples":[[0.1,0],[2,3]]}"#).unwrap();
        assert_eq!(raw, Raw { position: Some(7), time_us: None, n_samples: 2, values: vec![0.1, 0.0, 2.0, 3.0] });
        assert!(json(r#"{"type":"raw","channels":[null,1],"position":null}"#).unwrap().values[0].is_nan());
    }

    #[test]
    fn what_is_unusual_is_left_to_the_twin() {
        for text in [
            "",
            "{}",
            r#"{"type":"ping","t0":0}"#,
            r#"{"channels":[1,2]}"#,
            r#"{"type":"raw"}"#,
            r#"{"type":"raw","channels":[1]}"#,
            r#"{"type":"raw","channels":[1,2,3]}"#,
            r#"{"type":"raw","channels":[1,2],"channels":[1,2]}"#,
            r#"{"type":"raw","channels":[1,2],"samples":[[1,2]]}"#,
            r#"{"type":"raw","channels":[1,2],"more":1}"#,
            r#"{"type":"raw","channels":[1,2],"position":-1}"#,
            r#"{"type":"raw","channels":[1,2],"position":1.0}"#,
            r#"{"type":"raw","channels":[1,2],"position":9007199254740992}"#,
            r#"{"type":"raw","channels":[1,2],"timestamp":1e13}"#,
            r#"{"type":"raw","channels":[01,2]}"#,
            r#"{"type":"raw","channels":[1.,2]}"#,
            r#"{"type":"raw","channels":[+1,2]}"#,
            r#"{"type":"raw","channels":[1e39,2]}"#,
            r#"{"type":"raw","channels":[NaN,2]}"#,
            r#"{"type":"raw","channels":[1,2]} x"#,
            r#"{"type":"raw","channels":[1,2],}"#,
            r#"{"type":"raw","samples":[]}"#,
        ] {
            assert!(json(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_binary_chunk_is_read() {
        let mut data = vec![1, 1, 1, 0, 2, 0, 1, 0];
        data.extend(5i64.to_le_bytes());
        data.extend(i64::MIN.to_le_bytes());
        data.extend([1.5f32, -2.0].iter().flat_map(|value| value.to_le_bytes()));
        let mut raw = Raw::default();
        read_binary(&data, 2, &mut raw).unwrap();
        assert_eq!(raw, Raw { position: Some(5), time_us: None, n_samples: 1, values: vec![1.5, -2.0] });
        for (at, value) in [(0, 2), (3, 1), (4, 3), (6, 0), (15, 0x80), (31, 0x7f)] {
            let mut odd = data.clone();
            odd[at] = value;
            if at == 31 {
                odd[30] = 0x80;
                odd[29] = 0;
                odd[28] = 0;
            }
            assert!(read_binary(&odd, 2, &mut raw).is_none(), "{at}");
        }
        assert!(read_binary(&data[..31], 2, &mut raw).is_none());
    }
}
