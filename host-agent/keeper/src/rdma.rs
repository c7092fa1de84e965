//! The exporter: the keeper's memory on an RDMA device, for a card that is another machine. The data moves without this
//! process; what passes through it are connections and hints. It ends with the device, and with the keeper.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::Context as _;
use lunar_platform::ArenaId;
use lunar_verbs_ibv::Device;
use lunar_verbs_ibv::host_memory::{Arena, HintLines, HostMemory};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::client::{Client, Notice};
use crate::layout::{DATA_ARENA, RING_ARENA};
use crate::protocol::RdmaBlobs;

/// Exports the memory of the keeper at standard input on `device`, to cards that connect at `endpoint`, until the keeper
/// ends. An error is the device's end, or says why it cannot be used.
pub(crate) fn export(device: &str, endpoint: SocketAddr) -> anyhow::Result<()> {
    let name = device.parse().map_err(anyhow::Error::msg).context("--rdma")?;
    let mut keeper = Client::over(rustix::stdio::stdin().try_clone_to_owned()?);
    let mut offer = keeper.attach()?;
    let arena = |id, memory: BorrowedFd<'_>, bytes| -> anyhow::Result<Arena> {
        let bytes = usize::try_from(bytes).context("an arena beyond the address space")?;
        Ok(Arena { id: ArenaId(id), memory: memory.try_clone_to_owned()?, bytes })
    };
    let arenas = [
        arena(DATA_ARENA, offer.arena.as_fd(), offer.layout.arena_bytes())?,
        arena(RING_ARENA, offer.rings.as_fd(), offer.layout.rings_bytes())?,
    ];
    let lines = std::mem::take(&mut offer.hints)
        .into_iter()
        .map(|lines| HintLines { to_host: lines.to_host, to_card: lines.to_card })
        .collect();
    let mut memory = HostMemory::new(&Device::open(&name)?, endpoint, &arenas, lines)?;
    keeper.exported(blobs(&memory)?)?;
    tracing::info!(device, endpoint = %memory.endpoint(), "the memory is exported over RDMA");
    loop {
        memory.serve_once().with_context(|| format!("the export on {device} ends"))?;
        while let Some(notice) = keeper.next_notice()? {
            match notice {
                Notice::KeeperGone => return Ok(()),
                Notice::Revoked(arena) => {
                    memory.renew(ArenaId(arena))?;
                    keeper.exported(blobs(&memory)?)?;
                }
            }
        }
        let mut waits = [
            PollFd::from_borrowed_fd(memory.event_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(keeper.fd(), PollFlags::IN),
        ];
        match poll(&mut waits, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
    }
}

/// How the card reaches the data arena and the rings.
fn blobs(memory: &HostMemory) -> anyhow::Result<RdmaBlobs> {
    let blob = |id| {
        let blob = memory.blob(ArenaId(id)).and_then(|blob| blob.try_into().ok());
        blob.with_context(|| format!("arena {id} is not exported"))
    };
    Ok([blob(DATA_ARENA)?, blob(RING_ARENA)?])
}
