//! What the clients of each system say: where they connect, how they get in, how a sample is published, and what there
//! is in the frames that come. A user is a channel, subject or topic of its own.

use serde_json::{Value, json};

use crate::frame;
use crate::load::{Load, Role, user};

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Dialect {
    Zander,
    Floor, // floor.rs: samples as they are, nothing else
    Mqtt,  // 3.1.1, QoS 0
    Nats,
    Centrifugo, // its JSON protocol
}

/// A part of a frame.
#[derive(PartialEq, Debug)]
pub enum Part<'a> {
    Welcome(String), // the client is let in, and subscribed; with the session that the server gave it
    Samples(&'a [u8]),
    Ping(&'static [u8]), // and what answers it
    Other,               // what says nothing new
}

const NEVER: u16 = 0; // MQTT's keep alive
const PINGREQ: [u8; 2] = [0xc0, 0];

impl Dialect {
    pub fn read(text: &str) -> Option<Self> {
        Some(match text {
            "zander" => Self::Zander,
            "floor" => Self::Floor,
            "mqtt" => Self::Mqtt,
            "nats" => Self::Nats,
            "centrifugo" => Self::Centrifugo,
            _ => return None,
        })
    }

    pub fn path(self, load: &Load, n: usize) -> String {
        let topic = user(load.relay(n));
        let is_relay = matches!(load.role(n), Role::Relay(_));
        match self {
            Self::Zander if is_relay => "/stream".to_owned(),
            Self::Zander => format!("/subscribe/{topic}?format={}", if load.is_binary { "binary" } else { "json" }),
            Self::Floor => format!("/{}/{topic}", if is_relay { "stream" } else { "subscribe" }),
            Self::Mqtt => "/mqtt".to_owned(),
            Self::Nats => "/".to_owned(),
            Self::Centrifugo => "/connection/websocket".to_owned(),
        }
    }

    pub fn subprotocol(self) -> Option<&'static str> {
        (self == Self::Mqtt).then_some("mqtt")
    }

    /// The opcode of the frames that carry samples, both ways.
    pub fn opcode(self, load: &Load) -> u8 {
        match self {
            Self::Zander | Self::Floor if load.is_binary => frame::BINARY,
            _ => self.opcode_of_words(),
        }
    }

    /// The opcode of all that is said besides.
    pub fn opcode_of_words(self) -> u8 {
        if matches!(self, Self::Mqtt | Self::Nats) { frame::BINARY } else { frame::TEXT }
    }

    /// What a client says first; the answer to the last of it is its welcome. Empty where it is let in without a word.
    pub fn greeting(self, load: &Load, n: usize) -> Vec<u8> {
        let topic = user(load.relay(n));
        let is_relay = matches!(load.role(n), Role::Relay(_));
        match self {
            Self::Zander if is_relay => load.auth(load.relay(n)).into_bytes(),
            Self::Zander | Self::Floor => Vec::new(),
            Self::Mqtt => {
                let mut connect = [&text(b"MQTT")[..], &[4, 2]].concat(); // version 3.1.1, a clean session
                connect.extend_from_slice(&NEVER.to_be_bytes());
                connect.extend_from_slice(&text(load.name(n).as_bytes()));
                let mut said = packet(0x10, &connect);
                if !is_relay {
                    said.extend(packet(0x82, &[&[0, 1], &text(topic.as_bytes())[..], &[0]].concat()));
                }
                said.extend(PINGREQ);
                said
            }
            Self::Nats => {
                let subscribe = if is_relay { String::new() } else { format!("SUB {topic} 1\r\n") };
                format!("CONNECT {{\"verbose\":false,\"pedantic\":false}}\r\n{subscribe}PING\r\n").into_bytes()
            }
            Self::Centrifugo if is_relay => json!({"id": 1, "connect": {}}).to_string().into_bytes(),
            Self::Centrifugo => {
                let subscribe = json!({"id": 1, "subscribe": {"channel": topic}});
                format!("{}\n{subscribe}", json!({"id": 2, "connect": {}})).into_bytes()
            }
        }
    }

    /// Append a message that publishes the samples.
    pub fn publish(self, out: &mut Vec<u8>, relay: usize, samples: &[u8]) {
        match self {
            Self::Zander | Self::Floor => out.extend_from_slice(samples),
            Self::Mqtt => out.extend(packet(0x30, &[&text(user(relay).as_bytes()), samples].concat())),
            Self::Nats => {
                out.extend_from_slice(format!("PUB {} {}\r\n", user(relay), samples.len()).as_bytes());
                out.extend_from_slice(samples);
                out.extend_from_slice(b"\r\n");
            }
            Self::Centrifugo => {
                let start = format!(r#"{{"id":3,"publish":{{"channel":"{}","data":"#, user(relay));
                out.extend_from_slice(start.as_bytes());
                out.extend_from_slice(samples);
                out.extend_from_slice(b"}}");
            }
        }
    }

    /// Read the first part of what a frame holds, and how many bytes it has; an error is a refusal, or no sense.
    pub fn part<'a>(self, data: &'a [u8], is_welcome: bool) -> Result<(Part<'a>, usize), &'static str> {
        match self {
            Self::Zander if data.starts_with(br#"{"type":"status""#) => Ok((Part::Other, data.len())),
            Self::Zander if !is_welcome => {
                let answer: Value = serde_json::from_slice(data).map_err(|_| "expected JSON")?;
                let session = answer["session_id"].as_str().ok_or("expected a session_id")?;
                Ok((Part::Welcome(session.to_owned()), data.len()))
            }
            Self::Zander | Self::Floor => Ok((Part::Samples(data), data.len())),
            Self::Mqtt => mqtt(data).ok_or("expected a whole MQTT packet, and no refusal"),
            Self::Nats => nats(data).ok_or("expected a whole NATS message, and no -ERR"),
            Self::Centrifugo => centrifugo(data),
        }
    }
}

/// A string of MQTT, its length first.
fn text(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

/// A packet of MQTT, its length in groups of 7 bits.
fn packet(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    let mut n = body.len();
    while n > 0x7f {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
    out.extend_from_slice(body);
    out
}

fn mqtt(data: &[u8]) -> Option<(Part<'_>, usize)> {
    let (mut start, mut n) = (1, 0);
    loop {
        let byte = *data.get(start)?;
        n |= usize::from(byte & 0x7f) << (7 * (start - 1));
        start += 1;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let body = data.get(start..start + n)?;
    let part = match data[0] & 0xf0 {
        0x20 if body != [0, 0] => return None,          // CONNACK: not accepted
        0x90 if body.last() != Some(&0) => return None, // SUBACK: not subscribed
        0xd0 => Part::Welcome(String::new()),           // PINGRESP
        0x30 => {
            let n_topic = usize::from(u16::from_be_bytes(body.get(..2)?.try_into().ok()?));
            Part::Samples(body.get(2 + n_topic..)?)
        }
        _ => Part::Other,
    };
    Some((part, start + n))
}

fn nats(data: &[u8]) -> Option<(Part<'_>, usize)> {
    let end = data.windows(2).position(|window| window == b"\r\n")?;
    let (line, start) = (&data[..end], end + 2);
    let part = match line {
        _ if line.starts_with(b"MSG ") => {
            let n_bytes = std::str::from_utf8(line).ok()?.rsplit(' ').next()?.parse::<usize>().ok()?;
            return Some((Part::Samples(data.get(start..start + n_bytes)?), start + n_bytes + 2));
        }
        b"PING" => Part::Ping(b"PONG\r\n"),
        b"PONG" => Part::Welcome(String::new()),
        _ if line.starts_with(b"INFO ") => Part::Other,
        _ => return None,
    };
    Some((part, start))
}

fn centrifugo(data: &[u8]) -> Result<(Part<'_>, usize), &'static str> {
    let line = data.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let part = match line {
        b"{}" => Part::Ping(b"{}"),
        _ if line.starts_with(br#"{"push":{"channel":"#) => Part::Samples(line),
        _ if line.windows(8).any(|window| window == br#""error":"#) => return Err("expected no error"),
        _ if line.starts_with(br#"{"id":1,"#) => Part::Welcome(String::new()),
        _ => Part::Other, // the answer to a publish
    };
    Ok((part, data.len().min(line.len() + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLES: &[u8] = br#"{"type":"raw","channels":[4.0,7.0]}"#;

    fn parts(dialect: Dialect, mut data: &[u8]) -> Vec<Part<'_>> {
        let mut found = Vec::new();
        while !data.is_empty() {
            let (part, n) = dialect.part(data, true).unwrap();
            found.push(part);
            data = &data[n..];
        }
        found
    }

    #[test]
    fn a_frame_of_several_deliveries_gives_each_of_them() {
        let long = [SAMPLES, &[b' '; 200]].concat();
        let topic = text(b"bench-0007");
        let packets = [packet(0x30, &[&topic, SAMPLES].concat()), packet(0x30, &[&topic, &long[..]].concat())].concat();
        assert_eq!(parts(Dialect::Mqtt, &packets), [Part::Samples(SAMPLES), Part::Samples(&long)]);
        let message = [b"MSG bench-0007 1 35\r\n", SAMPLES, b"\r\n"].concat();
        let messages = [&message[..], b"PING\r\n", &message].concat();
        let expected = [Part::Samples(SAMPLES), Part::Ping(b"PONG\r\n"), Part::Samples(SAMPLES)];
        assert_eq!(parts(Dialect::Nats, &messages), expected);
        let push = [br#"{"push":{"channel":"bench-0007","pub":{"data":"#, SAMPLES, b"}}}"].concat();
        let lines = [&push[..], b"\n{\"id\":3,\"publish\":{}}\n{}\n", &push].concat();
        let expected = [Part::Samples(&push), Part::Other, Part::Ping(b"{}"), Part::Samples(&push)];
        assert_eq!(parts(Dialect::Centrifugo, &lines), expected);
    }

    #[test]
    fn a_server_is_published_what_it_will_deliver() {
        let mut out = Vec::new();
        Dialect::Mqtt.publish(&mut out, 7, SAMPLES);
        assert_eq!(parts(Dialect::Mqtt, &out), [Part::Samples(SAMPLES)]);
        out.clear();
        Dialect::Nats.publish(&mut out, 7, SAMPLES);
        assert_eq!(out, [b"PUB bench-0007 35\r\n", SAMPLES, b"\r\n"].concat());
        out.clear();
        Dialect::Centrifugo.publish(&mut out, 7, SAMPLES);
        let told: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(told["publish"]["channel"], "bench-0007");
        assert_eq!(told["publish"]["data"], serde_json::from_slice::<Value>(SAMPLES).unwrap());
    }

    #[test]
    fn a_refusal_and_a_part_of_a_message_are_errors() {
        for (dialect, data) in [
            (Dialect::Mqtt, &[0x20, 2, 0, 5][..]),
            (Dialect::Mqtt, &[0x90, 3, 0, 1, 0x80]),
            (Dialect::Mqtt, &[0x30, 9, 0]),
            (Dialect::Nats, b"-ERR 'Authorization Violation'\r\n"),
            (Dialect::Nats, b"MSG bench-0007 1 35\r\n{"),
            (Dialect::Centrifugo, br#"{"id":1,"error":{"code":103,"message":"permission denied"}}"#),
            (Dialect::Zander, br#"{"type":"error","message":"who are you?"}"#),
        ] {
            assert!(dialect.part(data, false).is_err(), "{dialect:?}");
        }
    }
}
