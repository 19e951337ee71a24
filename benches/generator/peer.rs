//! One connection: a relay's or a consumer's.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream as StdStream};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use rustix::net::sockopt::set_socket_recv_buffer_size;

use crate::load::Load;

const NARROW_BYTES: usize = 16 << 10;
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

#[derive(Clone, Copy, PartialEq)]
pub enum Stage {
    Shaking,  // asked for a WebSocket
    Greeting, // said who it is, or what it wants
    Ready,
    Stalled, // a consumer that reads no more
    Closed,
}

pub struct Peer {
    pub stage: Stage,
    socket: TcpStream,
    unsent: Vec<u8>,   // what the kernel did not take yet
    pub kept: Vec<u8>, // the beginning of a frame
}

impl Peer {
    /// Connect, and ask for a WebSocket.
    pub fn open(load: &Load, n: usize, registry: &Registry) -> io::Result<Self> {
        let socket = StdStream::connect((Ipv4Addr::LOCALHOST, load.port))?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        let mut socket = TcpStream::from_std(socket);
        registry.register(&mut socket, Token(n), Interest::READABLE | Interest::WRITABLE)?;
        let mut peer = Self { stage: Stage::Shaking, socket, unsent: Vec::new(), kept: Vec::new() };
        let path = load.dialect.path(load, n);
        let more =
            load.dialect.subprotocol().map_or_else(String::new, |name| format!("Sec-WebSocket-Protocol: {name}\r\n"));
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
        );
        peer.send(request.as_bytes())?;
        Ok(peer)
    }

    /// Let the kernel keep little of what is not read; else it would be megabytes before the server noticed.
    pub fn narrow(&self) -> io::Result<()> {
        Ok(set_socket_recv_buffer_size(&self.socket, NARROW_BYTES)?)
    }

    /// Send without waiting; what finds no room goes before whatever comes next.
    pub fn send(&mut self, data: &[u8]) -> io::Result<()> {
        if !self.unsent.is_empty() {
            self.unsent.extend_from_slice(data);
            return self.flush().map(drop);
        }
        let n = sent(self.socket.write(data))?;
        self.unsent.extend_from_slice(&data[n..]);
        Ok(())
    }

    /// Send what found no room, as far as there is some now; return how much that was.
    pub fn flush(&mut self) -> io::Result<usize> {
        if self.unsent.is_empty() {
            return Ok(0);
        }
        let n = sent(self.socket.write(&self.unsent))?;
        self.unsent.drain(..n);
        Ok(n)
    }

    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Read what is there, perhaps nothing now; an error when the server has closed.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.socket.read(buffer) {
            Ok(0) => Err(io::Error::other("closed by the server")),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            other => other,
        }
    }

    pub fn close(&mut self, registry: &Registry) {
        self.stage = Stage::Closed;
        self.unsent.clear();
        let _ = registry.deregister(&mut self.socket);
    }
}

fn sent(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
        other => other,
    }
}

/// How long the answer to the handshake is, in bytes; None until it is complete, and an error when it is a refusal.
pub fn read_answer(data: &[u8]) -> io::Result<Option<usize>> {
    let Some(n) = data.windows(END_OF_HEAD.len()).position(|window| window == END_OF_HEAD) else {
        return Ok(None);
    };
    if !data.starts_with(b"HTTP/1.1 101") {
        return Err(io::Error::other(String::from_utf8_lossy(data).into_owned()));
    }
    Ok(Some(n + END_OF_HEAD.len()))
}
