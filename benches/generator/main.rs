//! The load generator of the scale bench: one thread that plays all relays and all consumers.
//!
//!     zander-generator '<Load as JSON>'
//!
//! The load is open-loop: every send time is fixed before the run, and latency counts from there, so neither a slow
//! server nor a slow generator hides in it. It counts a second time from when a sample really left: that leaves out
//! what the generator was late. Writes a JSON line when the steady part begins, when it ends, and when everything has
//! arrived; then waits for a line on stdin and writes its figures.

mod crowd;
mod dialect;
mod frame;
mod histogram;
mod inbox;
mod load;
mod message;
mod pace;
mod peer;
mod random;
mod schedule;

use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::crowd::Crowd;
use crate::histogram::Histogram;
use crate::inbox::Inbox;
use crate::load::Load;
use crate::message::Messages;

const LOOK: Duration = Duration::from_millis(1); // between looks, in the end, at what finds no room
const N_TURN: u64 = 64; // sends, after which sockets are looked at even when more is due
const LEAD: Duration = Duration::from_millis(200);
const QUIET: Duration = Duration::from_secs(5); // without anything arriving, after which what is missing is lost
const TICKS_PER_S: f64 = 100.0; // of /proc/self/stat

/// What was sent, and how late it left.
struct Sent {
    n_messages: u64,
    n_together: u64, // of them, that were so late that they left together with the relay's one before
    next: Vec<u64>,  // message, by relay
    late: Histogram,
}

/// Send everything when it is due, and hear what comes meanwhile.
fn drive(crowd: &mut Crowd, messages: &mut Messages) -> io::Result<Sent> {
    crowd.begin_in(LEAD);
    sleep(LEAD);
    let mut sent = Sent { n_messages: 0, n_together: 0, next: vec![0; crowd.load.n_relays], late: Histogram::new() };
    let (mut n, mut is_steady, mut frames) = (0, false, Vec::new());
    while n < crowd.schedule.n_sends {
        let mut has_come = true;
        for _ in 0..N_TURN.min(crowd.schedule.n_sends - n) {
            let (relay, message) = crowd.schedule.send(n);
            let (due_ns, now_ns) = (crowd.schedule.due_ns(relay, message), crowd.now_ns());
            if due_ns > now_ns {
                has_come = crowd.rest(Duration::from_nanos(due_ns - now_ns))?;
                break;
            }
            if !is_steady && due_ns >= crowd.schedule.warmup_ns {
                is_steady = true;
                tell("steady", counts(crowd, &sent))?;
            }
            if sent.next[relay] == message {
                send_due(crowd, messages, &mut sent, relay, now_ns, &mut frames);
            } // else it has left, together with one before
            n += 1;
        }
        if has_come {
            crowd.receive(Some(Duration::ZERO))?;
        }
    }
    Ok(sent)
}

/// Send all that a relay has due, in one piece.
///
/// It is more than one message only where the generator is late by more than a period. A relay that was held up does
/// the same; and so a late generator catches up at a fraction of the cost, instead of falling further behind.
fn send_due(
    crowd: &mut Crowd,
    messages: &mut Messages,
    sent: &mut Sent,
    relay: usize,
    now_ns: u64,
    frames: &mut Vec<u8>,
) {
    let first = sent.next[relay];
    frames.clear();
    for message in first..crowd.load.n_messages() {
        let due_ns = crowd.schedule.due_ns(relay, message);
        if due_ns > now_ns {
            break;
        }
        let mask = crowd.random.bits() as u32;
        messages.write(frames, relay, message, crowd.start_us + (due_ns / 1000) as i64, mask);
        if due_ns >= crowd.schedule.warmup_ns {
            sent.late.add(now_ns - due_ns, 1);
        }
        sent.next[relay] = message + 1;
    }
    let all = first..sent.next[relay];
    if crowd.send(relay, all.clone(), frames, now_ns) {
        sent.n_messages += all.end - all.start;
        sent.n_together += all.end - all.start - 1;
    }
}

/// What was sent and heard so far, and when that is.
fn counts(crowd: &Crowd, sent: &Sent) -> Value {
    json!({
        "at_s": crowd.now_ns() as f64 / 1e9,
        "sent_messages": sent.n_messages,
        "received_samples": crowd.inboxes.iter().map(|inbox| inbox.n_received).sum::<u64>(),
    })
}

/// Hear the rest: until all is here, or nothing comes any more.
fn drain(crowd: &mut Crowd) -> io::Result<()> {
    let n_samples = crowd.load.n_samples();
    let mut heard = Instant::now();
    while heard.elapsed() < QUIET {
        if !crowd.has_unsent() && crowd.inboxes.iter().all(|inbox| inbox.is_full(n_samples)) {
            break;
        }
        crowd.rest(LOOK)?;
        if crowd.flush() + crowd.receive(Some(Duration::ZERO))? > 0 {
            heard = Instant::now();
        }
    }
    Ok(())
}

fn figures(crowd: &Crowd, sent: &Sent) -> Value {
    let n_samples = crowd.load.n_samples();
    let sum = |of: &dyn Fn(&Inbox) -> u64| crowd.inboxes.iter().map(of).sum::<u64>();
    json!({
        "sessions": crowd.sessions,
        "sent_messages": sent.n_messages,
        "sent_together": sent.n_together,
        "sent_samples": sent.n_messages * crowd.load.n_chunk as u64,
        "expected_samples": crowd.load.n_consumers as u64 * n_samples,
        "received_samples": sum(&|inbox| inbox.n_received),
        "lost_samples": sum(&|inbox| inbox.n_lost(n_samples)),
        "repeated_samples": sum(&|inbox| inbox.n_repeated),
        "latency_ms": percentiles(&crowd.latency),
        "latency_from_sent_ms": percentiles(&crowd.latency_from_sent),
        "generator_lag_ms": percentiles(&sent.late),
        "generator_cpu_s": cpu_s(),
        "closed": crowd.closed,
        "given_up": crowd.given_up.iter().map(|(at_ns, how)| json!([*at_ns as f64 / 1e9, how])).collect::<Value>(),
        "strange": crowd.strange,
    })
}

fn percentiles(histogram: &Histogram) -> Value {
    if histogram.is_empty() {
        return json!({});
    }
    let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| histogram.quantile_ms(share));
    json!({"p50": p50, "p99": p99, "p99.9": p999, "max": histogram.max_ms()})
}

/// What this process has used so far, in user and system; nothing where the machine does not say it like Linux.
fn cpu_s() -> Value {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
    let ticks: Vec<f64> = fields.skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    match ticks[..] {
        [user, system] => json!({"user": user / TICKS_PER_S, "system": system / TICKS_PER_S}),
        _ => json!({}),
    }
}

fn tell(event: &str, mut values: Value) -> io::Result<()> {
    values["event"] = event.into();
    let mut out = io::stdout().lock();
    writeln!(out, "{values}")?;
    out.flush()
}

fn run() -> io::Result<()> {
    let text = std::env::args().nth(1).unwrap_or_default();
    let mut crowd = Crowd::new(Load::read(&text).map_err(io::Error::other)?)?;
    let mut messages = Messages::new(&crowd.load, &mut crowd.random);
    crowd.connect()?;
    let sent = drive(&mut crowd, &mut messages)?;
    tell("sent", counts(&crowd, &sent))?;
    drain(&mut crowd)?;
    tell("arrived", json!({}))?;
    io::stdin().read_line(&mut String::new())?; // the parent weighs the server while everybody is still connected
    tell("figures", figures(&crowd, &sent))
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("zander-generator: {error}");
            ExitCode::FAILURE
        }
    }
}
