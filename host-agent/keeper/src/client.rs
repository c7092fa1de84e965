//! How the agent and the emulated card reach the keeper. Blocking calls, meant for start-up; afterwards the connection
//! is only listened to for revoked arenas and for the keeper's end.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};

use crate::layout::{DATA_ARENA, Layout, RING_ARENA};
use crate::protocol::{OFFER_BYTES, OfferRecord, Refusal, Reply, Request};
use crate::server::DESCRIPTORS_MAX;

/// What the keeper hands out.
#[derive(Debug)]
pub struct Offer {
    /// Where things lie.
    pub layout: Layout,
    /// The data arena: a sealed memory file of [`Layout::arena_bytes`] bytes.
    pub arena: OwnedFd,
    /// The rings: a sealed memory file of [`Layout::rings_bytes`] bytes.
    pub rings: OwnedFd,
    /// What an agent leaves for its successor: a sealed memory file of
    /// [`NOTES_BYTES`](crate::layout::NOTES_BYTES) bytes, zero at first. Not for the card.
    pub notes: OwnedFd,
    /// The hint lines of each poll group.
    pub hints: Vec<HintLines>,
    record: OfferRecord,
}

/// The two eventfds of a poll group, both non-blocking.
#[derive(Debug)]
pub struct HintLines {
    /// The card signals it, the agent's ring thread waits on it.
    pub to_host: OwnedFd,
    /// The agent signals it, the card's poll group waits on it.
    pub to_card: OwnedFd,
}

impl Offer {
    /// Names this life of the memory. When it is another than before, the rings are new and empty.
    pub fn keeper_id(&self) -> [u8; 16] {
        self.record.keeper_id
    }

    /// The export blob of an arena, which the card imports it with. Where the keeper exports the memory over RDMA, that
    /// export's; otherwise the arena's id (little-endian, 2 bytes) and its secret (16 bytes). `None` for an arena that is
    /// not there.
    pub fn export_blob(&self, arena: u16) -> Option<Vec<u8>> {
        let (index, secret) = match arena {
            DATA_ARENA => (0, self.record.arena_secret),
            RING_ARENA => (1, self.record.rings_secret),
            _ => return None,
        };
        if let Some(blobs) = &self.record.rdma {
            return blobs.get(index).map(|blob| blob.to_vec());
        }
        Some([&arena.to_le_bytes()[..], &secret].concat())
    }
}

/// What a client hears unasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The export of this arena was taken back; a new attach gives the new one.
    Revoked(u16),
    /// The keeper has ended, and the memory with it.
    KeeperGone,
}

/// A connection to the keeper.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    /// Notices that came while an answer was waited for.
    notices: Vec<Notice>,
}

impl Client {
    /// Connects to the keeper at `path`.
    pub fn connect(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let address = SocketAddrUnix::new(path)
            .with_context(|| format!("`{shown}` cannot be a socket's path: at most 107 bytes"))?;
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::net::connect(&socket, &address).with_context(|| {
            format!("no keeper answers at `{shown}`: start lunar-arena --socket {shown}")
        })?;
        Ok(Self::over(socket))
    }

    /// A client whose connection is there already.
    pub(crate) fn over(socket: OwnedFd) -> Self {
        Self { socket, notices: Vec::new() }
    }

    /// Connects, and tries again for `patience` while nobody answers: for processes that are started together.
    pub fn connect_within(path: &Path, patience: Duration) -> anyhow::Result<Self> {
        let start = Instant::now();
        loop {
            match Self::connect(path) {
                Ok(client) => return Ok(client),
                Err(error) if start.elapsed() >= patience => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// The connection, to wait on: readable when [`Client::next_notice`] has something.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Asks for the memory.
    pub fn attach(&mut self) -> anyhow::Result<Offer> {
        let (reply, descriptors) = self.ask(Request::Attach)?;
        let Reply::Offer(record) = reply else {
            bail!("the keeper answered {reply:?} to an attach")
        };
        let layout = Layout::new(record.groups, record.ring_slots, record.arena_bytes)
            .map_err(anyhow::Error::msg)
            .context("the keeper offers memory of an impossible shape")?;
        ensure!(
            layout.arena_bytes() == record.arena_bytes
                && layout.rings_bytes() == record.rings_bytes,
            "the keeper lays its memory out differently: run the keeper and this program in one version"
        );
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().context("the keeper sent too few descriptors");
        let (arena, rings, notes) = (next()?, next()?, next()?);
        let hints = (0..layout.groups())
            .map(|_| Ok(HintLines { to_host: next()?, to_card: next()? }))
            .collect::<anyhow::Result<_>>()?;
        Ok(Offer { layout, arena, rings, notes, hints, record })
    }

    /// Takes the export of `arena` back. When it returns, every other client has been told, and the old secret opens
    /// nothing any more.
    pub fn revoke(&mut self, arena: u16) -> anyhow::Result<()> {
        match self.ask(Request::Revoke { arena })?.0 {
            Reply::RevokeDone { arena: done } if done == arena => Ok(()),
            Reply::Refused(Refusal::NoSuchArena) => bail!("the keeper has no arena {arena}"),
            reply => bail!("the keeper answered {reply:?} to a revoke"),
        }
    }

    /// As the exporter: tells how the card reaches the memory over RDMA.
    #[cfg(feature = "ibverbs")]
    pub(crate) fn exported(&self, blobs: crate::protocol::RdmaBlobs) -> anyhow::Result<()> {
        let packet = Request::Exported(blobs).encode();
        rustix::net::send(&self.socket, &packet, SendFlags::NOSIGNAL)
            .context("the keeper is gone")?;
        Ok(())
    }

    /// What happened since, without waiting.
    pub fn next_notice(&mut self) -> anyhow::Result<Option<Notice>> {
        if !self.notices.is_empty() {
            return Ok(Some(self.notices.remove(0)));
        }
        match self.receive(RecvFlags::DONTWAIT) {
            Ok(Some((Reply::Revoked { arena }, _))) => Ok(Some(Notice::Revoked(arena))),
            Ok(Some((reply, _))) => bail!("the keeper said {reply:?} unasked"),
            Ok(None) => Ok(Some(Notice::KeeperGone)),
            Err(error) => match error.downcast_ref::<Errno>() {
                Some(&Errno::AGAIN) => Ok(None),
                Some(&(Errno::CONNRESET | Errno::PIPE)) => Ok(Some(Notice::KeeperGone)),
                _ => Err(error),
            },
        }
    }

    fn ask(&mut self, request: Request) -> anyhow::Result<(Reply, Vec<OwnedFd>)> {
        rustix::net::send(&self.socket, &request.encode(), SendFlags::NOSIGNAL)
            .context("the keeper is gone")?;
        loop {
            match self.receive(RecvFlags::empty())? {
                Some((Reply::Revoked { arena }, _)) => self.notices.push(Notice::Revoked(arena)),
                Some(answer) => return Ok(answer),
                None => bail!("the keeper closed the connection; its log says why"),
            }
        }
    }

    /// One packet; `None` at the end of the connection.
    fn receive(&self, flags: RecvFlags) -> anyhow::Result<Option<(Reply, Vec<OwnedFd>)>> {
        let mut packet = [0; OFFER_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let into = &mut [IoSliceMut::new(&mut packet)];
            match rustix::net::recvmsg(
                &self.socket,
                into,
                &mut control,
                flags | RecvFlags::CMSG_CLOEXEC,
            ) {
                Err(Errno::INTR) => {}
                // Whoever waits for notices may have made the socket non-blocking.
                Err(Errno::AGAIN) if !flags.contains(RecvFlags::DONTWAIT) => {
                    let mut wait = [PollFd::new(&self.socket, PollFlags::IN)];
                    let _interrupted_or_ready = poll(&mut wait, None);
                }
                other => break other?,
            }
        };
        if received.bytes == 0 {
            return Ok(None);
        }
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        let reply = packet.get(..received.bytes).and_then(Reply::parse);
        let reply = reply.context("the keeper's answer is not of this version")?;
        Ok(Some((reply, descriptors)))
    }
}
