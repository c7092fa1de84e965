//! The keeper itself: makes the memory, accepts clients, answers them, and sees to the exporter. One thread, poll(2).

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, Mode, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};
use tracing::{info, warn};

use crate::export::Export;
use crate::layout::{DATA_ARENA, GROUPS_MAX, Layout, NOTES_BYTES, RING_ARENA};
use crate::protocol::{OfferRecord, REQUEST_BYTES_MAX, Refusal, Reply, Request};
#[cfg(feature = "ibverbs")]
use crate::rdma::export;

/// Clients at a time: an agent, its successor, a card, and people who look. More are refused.
const CLIENTS_MAX: usize = 32;

/// Descriptors of one offer: three memories and two hint lines for each group.
pub(crate) const DESCRIPTORS_MAX: usize = 3 + 2 * GROUPS_MAX as usize;

/// What `lunar-arena` is told on its command line.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "lunar-arena", version, about = "Keeps the memory that card and agent share")]
pub struct Options {
    /// Path of the Unix socket to serve; made with mode 0600.
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Bytes of host memory for commands' data.
    #[arg(long, value_name = "BYTES", default_value_t = 256 << 20)]
    pub arena_bytes: u64,
    /// Poll groups of the card: each gets rings and a part of the memory.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    pub groups: u32,
    /// Slots of each ring, a power of two.
    #[arg(long, value_name = "COUNT", default_value_t = 1024)]
    pub ring_slots: u32,
    /// RDMA device over which the card, on another machine, reaches the memory, and one of its ports if only that is to
    /// be used: rxe0, mlx5_0:1. Without it the card is in this machine.
    #[arg(long, value_name = "DEVICE[:PORT]", requires = "rdma_listen")]
    pub rdma: Option<String>,
    /// Address of that device that the card can reach, and the RDMA port to take its connections at (0 chooses one).
    #[arg(long, value_name = "ADDRESS:PORT", requires = "rdma")]
    pub rdma_listen: Option<SocketAddr>,
    /// For the keeper alone, which starts this program a second time to export its memory.
    #[arg(long, hide = true, requires = "rdma")]
    pub exporter: bool,
    /// End when standard input, a pipe from the starting process, is closed.
    #[arg(long)]
    pub exit_with_parent: bool,
}

/// Makes the memory and serves it until SIGTERM or SIGINT, or until standard input closes where `exit_with_parent` says
/// so. The socket is removed at the end.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let rdma = options.rdma.clone().zip(options.rdma_listen);
    if let Some((device, endpoint)) = rdma.as_ref().filter(|_| options.exporter) {
        return export(device, *endpoint);
    }
    let layout = Layout::new(options.groups, options.ring_slots, options.arena_bytes)
        .map_err(anyhow::Error::msg)
        .context(
            "the keeper's memory cannot be laid out; see --groups, --ring-slots, --arena-bytes",
        )?;
    let stop = stop_on_signals().context("SIGTERM and SIGINT cannot be caught")?;
    let mut keeper = Keeper::new(layout)?;
    if let Some((device, endpoint)) = rdma {
        keeper.start_export(Export::new(device, endpoint))?;
    }
    let socket = Socket::bind(&options.socket)?;
    info!(
        socket = %options.socket.display(),
        arena_bytes = layout.arena_bytes(),
        rings_bytes = layout.rings_bytes(),
        groups = layout.groups(),
        "the keeper serves"
    );
    let stdin = rustix::stdio::stdin();
    let parent = options.exit_with_parent.then_some(stdin);
    loop {
        if let Some(reason) = keeper.wait(&socket, stop.as_fd(), parent)? {
            info!(reason, "the keeper ends; the rings and the arena end with it");
            return Ok(());
        }
    }
}

#[cfg(not(feature = "ibverbs"))]
fn export(device: &str, _endpoint: SocketAddr) -> anyhow::Result<()> {
    bail!(
        "--rdma {device}: this lunar-arena was built without RDMA; build it with \
         cargo build -p lunar-keeper --features ibverbs"
    )
}

fn stop_on_signals() -> std::io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    signal_hook::low_level::pipe::register(signal_hook::consts::SIGTERM, write.try_clone()?)?;
    signal_hook::low_level::pipe::register(signal_hook::consts::SIGINT, write)?;
    Ok(read)
}

/// A bound listening socket that removes its path when dropped.
struct Socket {
    listener: OwnedFd,
    path: PathBuf,
}

impl Socket {
    fn bind(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let address = SocketAddrUnix::new(path)
            .with_context(|| format!("`{shown}` cannot be a socket's path: at most 107 bytes"))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let new =
            || rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        // A path left behind by a keeper that was killed is taken over; one that answers is not.
        match rustix::net::connect(&new()?, &address) {
            Ok(()) => bail!("another keeper serves `{shown}`: stop it, or choose another --socket"),
            Err(Errno::CONNREFUSED) => rustix::fs::unlink(path)
                .with_context(|| format!("the dead socket `{shown}` cannot be removed"))?,
            Err(_) => {}
        }
        let listener = new()?;
        rustix::net::bind(&listener, &address)
            .with_context(|| format!("`{shown}` cannot be bound: see that its directory exists"))?;
        let socket = Self { listener, path: path.to_owned() };
        // Clients are checked by their credentials anyway; the mode keeps others from filling the backlog.
        rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR)?;
        rustix::net::listen(&socket.listener, 16)?;
        Ok(socket)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _gone_already = rustix::fs::unlink(&self.path);
    }
}

pub(crate) struct Keeper {
    pub(crate) layout: Layout,
    keeper_id: [u8; 16],
    pub(crate) arena: OwnedFd,
    arena_secret: [u8; 16],
    pub(crate) rings: OwnedFd,
    rings_secret: [u8; 16],
    /// What an agent leaves for its successor. Never exported: the card must not be able to write it.
    notes: OwnedFd,
    /// For each group: the line that wakes the host, then the one that wakes the card.
    pub(crate) hints: Vec<OwnedFd>,
    clients: Vec<OwnedFd>,
    /// Where the memory is to be exported over RDMA.
    export: Option<Export>,
}

/// What is there to be read from a client.
enum Packet {
    /// Nothing now.
    None,
    /// The end, or an error, which is the end.
    Gone,
    /// Something that is no request of this version, of so many bytes.
    Malformed(usize),
    Request(Request),
}

/// What the exporter did.
enum Heard {
    /// It told how the memory is reached.
    Blobs,
    /// Something else, which is dealt with.
    Something,
    /// It said nothing, or there is none (any more).
    Nothing,
}

fn receive(client: BorrowedFd<'_>, flags: RecvFlags) -> Packet {
    let mut packet = [0; REQUEST_BYTES_MAX];
    match rustix::net::recv(client, &mut packet, flags | RecvFlags::TRUNC) {
        Ok((_, 0)) => Packet::Gone,
        Ok((_, length)) => match packet.get(..length).and_then(Request::parse) {
            Some(request) => Packet::Request(request),
            None => Packet::Malformed(length),
        },
        Err(Errno::AGAIN | Errno::INTR) => Packet::None,
        Err(_) => Packet::Gone,
    }
}

impl Keeper {
    fn new(layout: Layout) -> anyhow::Result<Self> {
        let memory = |name: &str, bytes: u64| -> anyhow::Result<OwnedFd> {
            let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
            ftruncate(&file, bytes).with_context(|| format!("{bytes} bytes for {name}"))?;
            // Whoever maps it must never be sent SIGBUS by another client's truncation.
            fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
            Ok(file)
        };
        let lines = 2 * layout.groups();
        let hints = (0..lines)
            .map(|_| eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK))
            .collect::<Result<_, _>>()
            .context("the hint lines cannot be made: see the limit of open files")?;
        Ok(Self {
            layout,
            keeper_id: random_bytes()?,
            arena: memory("lunar-arena", layout.arena_bytes())?,
            arena_secret: random_bytes()?,
            rings: memory("lunar-rings", layout.rings_bytes())?,
            rings_secret: random_bytes()?,
            notes: memory("lunar-notes", NOTES_BYTES)?,
            hints,
            clients: Vec::new(),
            export: None,
        })
    }

    /// Sleeps until something happens and handles it. `Some` is the reason to end.
    fn wait(
        &mut self,
        socket: &Socket,
        stop: BorrowedFd<'_>,
        parent: Option<BorrowedFd<'_>>,
    ) -> anyhow::Result<Option<&'static str>> {
        let mut waits = vec![
            PollFd::from_borrowed_fd(stop, PollFlags::IN),
            PollFd::new(&socket.listener, PollFlags::IN),
        ];
        waits.extend(self.clients.iter().map(|client| PollFd::new(client, PollFlags::IN)));
        // What a parent writes is not read: only the end of the pipe matters.
        waits.extend(parent.map(|pipe| PollFd::from_borrowed_fd(pipe, PollFlags::empty())));
        let exporter = self.export.as_ref().and_then(Export::socket);
        waits.extend(exporter.map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN)));
        let patience = self.export.as_ref().and_then(Export::look_again_in);
        let patience = patience.and_then(|patience| Timespec::try_from(patience).ok());
        match poll(&mut waits, patience.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
        let ready: Vec<bool> = waits.iter().map(|wait| !wait.revents().is_empty()).collect();
        drop(waits);
        if ready[0] {
            return Ok(Some("a signal asked for it"));
        }
        let clients = self.clients.len();
        if parent.is_some() && ready[2 + clients] {
            return Ok(Some("the starting process is gone"));
        }
        // From the back, so that a client that leaves does not move those not looked at yet.
        for index in (0..clients).rev() {
            if ready[2 + index] && !self.serve(index) {
                self.clients.remove(index);
            }
        }
        self.see_to_export();
        if ready[1] {
            self.accept(socket);
        }
        Ok(None)
    }

    fn accept(&mut self, socket: &Socket) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(client) = rustix::net::accept_with(&socket.listener, flags) else { return };
        let own = rustix::process::geteuid();
        match rustix::net::sockopt::socket_peercred(&client) {
            Ok(peer) if peer.uid == own || peer.uid.is_root() => {}
            Ok(peer) => {
                let (uid, own) = (peer.uid.as_raw(), own.as_raw());
                return warn!(uid, own, "client refused: it runs as neither this user nor root");
            }
            Err(error) => return warn!(%error, "client refused: its user cannot be told"),
        }
        if self.clients.len() >= CLIENTS_MAX {
            return warn!(CLIENTS_MAX, "client refused: there are as many as there may be");
        }
        self.clients.push(client);
    }

    /// Answers one packet of a client. False when the client is gone or has to go.
    fn serve(&mut self, index: usize) -> bool {
        let client = self.clients[index].as_fd();
        match receive(client, RecvFlags::DONTWAIT) {
            Packet::None => true,
            Packet::Gone => false,
            Packet::Request(Request::Attach) => {
                self.send(client, &Reply::Offer(self.offer()), true)
            }
            Packet::Request(Request::Revoke { arena }) => self.revoke(index, arena),
            Packet::Request(Request::Exported(_)) => {
                warn!("client dropped: it is not the exporter, but said what only that may say");
                self.send(client, &Reply::Refused(Refusal::Malformed), false);
                false
            }
            Packet::Malformed(bytes) => {
                warn!(bytes, "client dropped: it sent what is no request of this version");
                self.send(client, &Reply::Refused(Refusal::Malformed), false);
                false
            }
        }
    }

    /// Has the memory exported over RDMA, and waits until it is.
    fn start_export(&mut self, mut export: Export) -> anyhow::Result<()> {
        export.start()?;
        self.export = Some(export);
        if !self.hear_blobs() {
            bail!(
                "the memory cannot be exported over RDMA; the exporter's lines above say why (see --rdma, --rdma-listen)"
            );
        }
        Ok(())
    }

    /// Serves the exporter, or starts one where there is none.
    fn see_to_export(&mut self) {
        if let Some(export) = &mut self.export {
            export.start_again();
        }
        let before = self.offer().rdma;
        while !matches!(self.hear_exporter(RecvFlags::DONTWAIT), Heard::Nothing) {}
        if self.offer().rdma != before {
            // A new exporter: what was exported before is over.
            self.tell_revoked(DATA_ARENA, None);
            self.tell_revoked(RING_ARENA, None);
        }
    }

    /// Waits for the exporter's blobs. False when it ended instead.
    fn hear_blobs(&mut self) -> bool {
        loop {
            match self.hear_exporter(RecvFlags::empty()) {
                Heard::Blobs => return true,
                Heard::Something => {}
                Heard::Nothing => return false,
            }
        }
    }

    /// Takes one packet of the exporter, where there is one.
    fn hear_exporter(&mut self, flags: RecvFlags) -> Heard {
        let Some(socket) = self.export.as_ref().and_then(Export::socket) else {
            return Heard::Nothing;
        };
        let sound = match receive(socket, flags) {
            Packet::None if flags.contains(RecvFlags::DONTWAIT) => return Heard::Nothing,
            Packet::None => true,
            Packet::Request(Request::Attach) => {
                self.send(socket, &Reply::Offer(self.offer()), true)
            }
            Packet::Request(Request::Exported(blobs)) => {
                self.export.iter_mut().for_each(|export| export.exported(blobs));
                return Heard::Blobs;
            }
            Packet::Gone | Packet::Malformed(_) | Packet::Request(Request::Revoke { .. }) => false,
        };
        if !sound {
            self.export.iter_mut().for_each(Export::ended);
            return Heard::Nothing;
        }
        Heard::Something
    }

    fn revoke(&mut self, index: usize, arena: u16) -> bool {
        let secret = match arena {
            DATA_ARENA => &mut self.arena_secret,
            RING_ARENA => &mut self.rings_secret,
            _ => return self.answer(index, &Reply::Refused(Refusal::NoSuchArena)),
        };
        match random_bytes() {
            Ok(new) => *secret = new,
            Err(error) => {
                warn!(%error, "client dropped: no new secret could be made for its revoke");
                return false;
            }
        }
        if let Some(exporter) = self.export.as_ref().and_then(Export::socket)
            && !(self.send(exporter, &Reply::Revoked { arena }, false) && self.hear_blobs())
        {
            warn!(arena, "an arena was taken back and could not be exported anew over RDMA");
        }
        info!(arena, "export revoked");
        self.tell_revoked(arena, Some(index));
        self.answer(index, &Reply::RevokeDone { arena })
    }

    /// Tells every client, but for one, that the export of `arena` was taken back.
    fn tell_revoked(&self, arena: u16, but: Option<usize>) {
        for (index, client) in self.clients.iter().enumerate() {
            if Some(index) != but && !self.answer(index, &Reply::Revoked { arena }) {
                // Not removed here: its socket is shut and the next poll finds it gone.
                let _ = rustix::net::shutdown(client, rustix::net::Shutdown::Both);
            }
        }
    }

    fn offer(&self) -> OfferRecord {
        OfferRecord {
            keeper_id: self.keeper_id,
            groups: self.layout.groups(),
            ring_slots: self.layout.ring().slots(),
            arena_bytes: self.layout.arena_bytes(),
            rings_bytes: self.layout.rings_bytes(),
            arena_secret: self.arena_secret,
            rings_secret: self.rings_secret,
            rdma: self.export.as_ref().and_then(|export| export.blobs),
        }
    }

    /// Sends a reply without descriptors to a client.
    fn answer(&self, index: usize, reply: &Reply) -> bool {
        self.clients.get(index).is_some_and(|client| self.send(client.as_fd(), reply, false))
    }

    /// Sends without waiting: a client that does not read its replies is dropped rather than waited for.
    fn send(&self, client: BorrowedFd<'_>, reply: &Reply, with_descriptors: bool) -> bool {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let mut descriptors = Vec::new();
        if with_descriptors {
            descriptors.extend([self.arena.as_fd(), self.rings.as_fd(), self.notes.as_fd()]);
            descriptors.extend(self.hints.iter().map(AsFd::as_fd));
            if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
                return false;
            }
        }
        let packet = reply.encode();
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let sent = rustix::net::sendmsg(client, &[IoSlice::new(&packet)], &mut control, flags);
        sent.is_ok_and(|bytes| bytes == packet.len())
    }
}

fn random_bytes() -> anyhow::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    if filled != bytes.len() {
        bail!("getrandom(2) gave {filled} bytes instead of {}", bytes.len());
    }
    Ok(bytes)
}
