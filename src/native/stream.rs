//! A socket that never waits: what was received, and what could not be sent yet.

use std::io::{self, ErrorKind, Read, Write};
use std::time::Duration;

use mio::net::TcpStream;
use socket2::SockRef;

pub enum Received {
    Bytes(usize),
    Nothing, // for now
    End,     // the peer sends no more
    Lost,    // it is gone
}

pub struct Stream {
    pub tcp: TcpStream,
    unsent: Vec<u8>,
    n_sent: usize, // of `unsent`
}

impl Stream {
    pub fn new(tcp: TcpStream) -> Self {
        Self { tcp, unsent: Vec::new(), n_sent: 0 }
    }

    pub fn receive(&mut self, buffer: &mut [u8]) -> Received {
        loop {
            match self.tcp.read(buffer) {
                Ok(0) => return Received::End,
                Ok(n) => return Received::Bytes(n),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Received::Nothing,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Received::Lost,
            }
        }
    }

    /// Let the kernel drop what it could not send: it would wait for a peer that does not read.
    pub fn reset_when_closed(&self) {
        let _ = SockRef::from(&self.tcp).set_linger(Some(Duration::ZERO)); // else it is closed as any other
    }

    pub fn n_unsent(&self) -> usize {
        self.unsent.len() - self.n_sent
    }

    /// Send what can be sent now, behind what was not sent yet, and keep the rest.
    pub fn send(&mut self, data: &[u8]) -> io::Result<()> {
        let n = if self.n_unsent() == 0 { self.send_now(data)? } else { 0 };
        self.unsent.extend_from_slice(&data[n..]);
        Ok(())
    }

    pub fn send_unsent(&mut self) -> io::Result<()> {
        let unsent = std::mem::take(&mut self.unsent);
        let sent = self.send_now(&unsent[self.n_sent..]);
        self.unsent = unsent;
        self.n_sent += sent?;
        if self.n_sent == self.unsent.len() {
            (self.unsent, self.n_sent) = (Vec::new(), 0);
        } else if self.n_sent > self.unsent.len() / 2 {
            self.unsent.drain(..self.n_sent);
            self.n_sent = 0;
        }
        Ok(())
    }

    fn send_now(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut n = 0;
        while n < data.len() {
            match self.tcp.write(&data[n..]) {
                Ok(sent) => n += sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(n)
    }
}
