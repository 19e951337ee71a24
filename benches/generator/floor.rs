//! The least that a relay server can do: a loop on epoll that reads a WebSocket frame and writes it to who listens.
//!
//!     floor PORT
//!
//! `/stream/USER` sends, `/subscribe/USER` listens. One `recv` for what a producer has sent, one `send` for each
//! consumer and turn. It checks, counts and keeps nothing: what any server costs more than this is what it does more.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::mem::take;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

const LISTENER: Token = Token(usize::MAX);
const N_BUFFER: usize = 64 << 10;
const END_OF_HEAD: &[u8] = b"\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: ICX+Yqv66kxgM0FcWaLWlFLwTAI=\r\n\r\n"; // to the one key that the generator sends

enum Role {
    New,
    Producer(usize), // the number of its user
    Consumer,
}

struct Connection {
    socket: TcpStream,
    role: Role,
    kept: Vec<u8>, // the beginning of a frame, or of the request
    out: Vec<u8>,  // what this turn has for it, or the kernel did not take
    is_due: bool,
}

#[derive(Default)]
struct Floor {
    connections: Vec<Option<Connection>>,
    users: HashMap<Vec<u8>, usize>,
    consumers: Vec<Vec<usize>>, // by user
    due: Vec<usize>,
    frame: Vec<u8>,
}

impl Floor {
    fn accept(&mut self, listener: &TcpListener, poll: &Poll) -> io::Result<()> {
        loop {
            let mut socket = match listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            socket.set_nodelay(true)?;
            let token = Token(self.connections.len());
            poll.registry().register(&mut socket, token, Interest::READABLE | Interest::WRITABLE)?;
            let (kept, out) = (Vec::new(), Vec::new());
            self.connections.push(Some(Connection { socket, role: Role::New, kept, out, is_due: false }));
        }
    }

    /// Read all that a connection has sent; one that has ended or failed is dropped.
    fn pull(&mut self, n: usize, buffer: &mut [u8]) {
        let Some(mut connection) = self.connections[n].take() else { return };
        loop {
            match connection.socket.read(buffer) {
                Ok(0) => return self.forget(n),
                Ok(n_read) => {
                    self.take(n, &mut connection, &buffer[..n_read]);
                    if n_read < buffer.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return self.forget(n),
            }
        }
        self.connections[n] = Some(connection);
    }

    fn forget(&mut self, n: usize) {
        self.consumers.iter_mut().for_each(|consumers| consumers.retain(|&consumer| consumer != n));
    }

    fn take(&mut self, n: usize, connection: &mut Connection, bytes: &[u8]) {
        let mut kept = take(&mut connection.kept);
        if kept.is_empty() {
            let n_taken = self.take_whole(n, connection, bytes);
            kept.extend_from_slice(&bytes[n_taken..]);
        } else {
            kept.extend_from_slice(bytes);
            let n_taken = self.take_whole(n, connection, &kept);
            kept.drain(..n_taken);
        }
        connection.kept = kept;
    }

    /// Take all that is complete; return how many bytes that was.
    fn take_whole(&mut self, n: usize, connection: &mut Connection, bytes: &[u8]) -> usize {
        let mut n_taken = 0;
        if matches!(connection.role, Role::New) {
            let Some(n_head) = bytes.windows(END_OF_HEAD.len()).position(|window| window == END_OF_HEAD) else {
                return 0;
            };
            n_taken = n_head + END_OF_HEAD.len();
            connection.role = self.enter(n, &bytes[..n_head]);
            connection.out.extend_from_slice(ANSWER);
            self.due.push(n);
            connection.is_due = true;
        }
        while let Some((opcode, mask, start, end)) = read_frame(&bytes[n_taken..]) {
            if let Role::Producer(user) = connection.role {
                self.give(user, opcode, mask, &bytes[n_taken + start..n_taken + end]);
            }
            n_taken += end;
        }
        n_taken
    }

    fn enter(&mut self, n: usize, head: &[u8]) -> Role {
        let path = head.split(|&byte| byte == b' ').nth(1).unwrap_or_default();
        let slash = path.iter().rposition(|&byte| byte == b'/').unwrap_or_default();
        let user = *self.users.entry(path[slash..].to_vec()).or_insert(self.consumers.len());
        self.consumers.resize_with(self.users.len(), Vec::new);
        if path.starts_with(b"/stream/") {
            return Role::Producer(user);
        }
        self.consumers[user].push(n);
        Role::Consumer
    }

    /// Queue a frame, unmasked and below 64 KiB, for all that listen to a user.
    fn give(&mut self, user: usize, opcode: u8, mask: [u8; 4], payload: &[u8]) {
        self.frame.clear();
        match payload.len() {
            n if n < 126 => self.frame.extend_from_slice(&[opcode, n as u8]),
            n => self.frame.extend_from_slice(&[opcode, 126, (n >> 8) as u8, n as u8]),
        }
        self.frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
        for &n in &self.consumers[user] {
            let Some(connection) = &mut self.connections[n] else { continue };
            connection.out.extend_from_slice(&self.frame);
            if !connection.is_due {
                connection.is_due = true;
                self.due.push(n);
            }
        }
    }

    /// Send each what it is due; what finds no room goes when the socket has some.
    fn flush(&mut self) {
        for n in take(&mut self.due) {
            let Some(connection) = &mut self.connections[n] else { continue };
            connection.is_due = false;
            if connection.out.is_empty() {
                continue; // it was due twice: for what is new, and for the room that its socket has again
            }
            if let Ok(n_sent) = connection.socket.write(&connection.out) {
                connection.out.drain(..n_sent);
            }
        }
    }
}

/// The opcode of a client's first frame, its mask, and where its payload starts and ends; None until all is there.
fn read_frame(data: &[u8]) -> Option<(u8, [u8; 4], usize, usize)> {
    let (opcode, size) = (*data.first()?, data.get(1)? & 0x7f);
    let (start, n) = match size {
        126 => (8, u16::from_be_bytes(data.get(2..4)?.try_into().ok()?) as usize),
        127 => (14, u64::from_be_bytes(data.get(2..10)?.try_into().ok()?) as usize),
        n => (6, n as usize),
    };
    let mask = data.get(start - 4..start)?.try_into().ok()?;
    (start + n <= data.len()).then_some((opcode, mask, start, start + n))
}

fn run(port: u16) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let (mut floor, mut events, mut buffer) = (Floor::default(), Events::with_capacity(1024), vec![0; N_BUFFER]);
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            other => other?,
        }
        for event in &events {
            match event.token() {
                LISTENER => floor.accept(&listener, &poll)?,
                Token(n) => {
                    if event.is_writable() {
                        floor.due.push(n);
                    }
                    if event.is_readable() {
                        floor.pull(n, &mut buffer);
                    }
                }
            }
        }
        floor.flush();
    }
}

fn main() -> ExitCode {
    let port = std::env::args().nth(1).and_then(|text| text.parse().ok());
    match port.map(run) {
        Some(Err(error)) => eprintln!("floor: {error}"),
        _ => eprintln!("floor: expected a port"),
    }
    ExitCode::FAILURE
}
