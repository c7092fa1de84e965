//! The bridge's end of the socket to a VSCSI server: a length, a letter, a payload; numbers are big-endian. The
//! server's end is `lunar-hypervisor`'s.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Longest frame of a server: a letter, an address and more than the longest copy.
const FRAME_BYTES_MAX: usize = 1 << 20;
/// How long a server may let us wait with what it asked for.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a server says.
#[derive(Debug, PartialEq, Eq)]
pub enum FromServer {
    /// `O`: whether it has a queue.
    Open(bool),
    /// `R`: it wants so many bytes of the client's window.
    Read { address: u64, bytes: u32 },
    /// `W`: bytes for the client's window.
    Write { address: u64, bytes: Vec<u8> },
    /// `S`: an entry for the client's queue.
    Send([u8; 16]),
    /// `X`: what the client's next H_SEND_CRQ is to return.
    Refuse(i64),
}

/// What is said to a server.
#[derive(Debug)]
pub enum ToServer<'a> {
    /// `G`: the client has a queue there, of so many bytes.
    Registered { address: u64, bytes: u64 },
    /// `F`: it has none any more.
    Freed,
    /// `E`: it called H_ENABLE_CRQ.
    Enabled,
    /// `C`: an entry of the client.
    Entry([u8; 16]),
    /// `r`: what was to be read, or nothing where the window does not let it.
    Read(Option<&'a [u8]>),
    /// `w`: whether it was written.
    Wrote(bool),
    /// `s`: what H_SEND_CRQ came to.
    Sent(i64),
}

/// A connected server.
pub struct Link {
    stream: UnixStream,
    inbox: Vec<u8>,
}

impl Link {
    /// The server at the other end of `stream`.
    pub fn over(stream: UnixStream) -> Result<Link> {
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Link { stream, inbox: Vec::new() })
    }

    /// Becomes readable when the server says something, or goes.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Reads what there is, once; false when the server has gone.
    pub fn receive(&mut self) -> bool {
        let mut bytes = [0; 64 << 10];
        let count = self.stream.read(&mut bytes).unwrap_or(0);
        self.inbox.extend(&bytes[..count]);
        count > 0
    }

    /// The next whole frame that has come.
    pub fn take(&mut self) -> Result<Option<FromServer>> {
        let Some((length, rest)) = self.inbox.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        ensure!((1..=FRAME_BYTES_MAX).contains(&length), "a frame of {length} bytes");
        let Some(frame) = rest.get(..length) else { return Ok(None) };
        let said = parse(frame).with_context(|| format!("a frame `{}`", frame[0] as char))?;
        self.inbox.drain(..4 + length);
        Ok(Some(said))
    }

    /// Says something; an error when the server does not listen.
    pub fn say(&mut self, what: &ToServer<'_>) -> Result<()> {
        let (letter, payload) = match what {
            ToServer::Registered { address, bytes } => {
                (b'G', [address.to_be_bytes(), bytes.to_be_bytes()].concat())
            }
            ToServer::Freed => (b'F', Vec::new()),
            ToServer::Enabled => (b'E', Vec::new()),
            ToServer::Entry(entry) => (b'C', entry.to_vec()),
            ToServer::Read(Some(bytes)) => (b'r', [&[0], *bytes].concat()),
            ToServer::Read(None) => (b'r', vec![1]),
            ToServer::Wrote(written) => (b'w', vec![u8::from(!written)]),
            ToServer::Sent(code) => (b's', code.to_be_bytes().to_vec()),
        };
        let mut frame = u32::try_from(1 + payload.len())?.to_be_bytes().to_vec();
        frame.push(letter);
        frame.extend(payload);
        self.stream.write_all(&frame).context("the server does not listen")
    }
}

fn parse(frame: &[u8]) -> Option<FromServer> {
    let (letter, payload) = frame.split_first()?;
    let long = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_be_bytes);
    Some(match (letter, payload) {
        (b'O', [open]) => FromServer::Open(*open != 0),
        (b'R', place) if place.len() == 12 => FromServer::Read {
            address: long(&place[..8])?,
            bytes: u32::from_be_bytes(place[8..].try_into().ok()?),
        },
        (b'W', place) => {
            FromServer::Write { address: long(place.get(..8)?)?, bytes: place[8..].to_vec() }
        }
        (b'S', entry) => FromServer::Send(entry.try_into().ok()?),
        (b'X', code) => FromServer::Refuse(long(code)? as i64),
        _ => return None,
    })
}
