//! The keeper's memory on an RDMA device, for a card that is another machine. The data moves without the keeper; what
//! passes through it are connections and hints.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::Context as _;
use lunar_platform::ArenaId;
use lunar_verbs_ibv::host_memory::{Arena, HintLines, HostMemory};
use lunar_verbs_ibv::{Device, HcaName};

use crate::layout::{DATA_ARENA, RING_ARENA};
use crate::protocol::RDMA_BLOB_BYTES;
use crate::server::Keeper;

/// Both arenas, exported.
pub(crate) struct Export(HostMemory);

impl Export {
    /// Registers the memory with the device and listens for the card at `endpoint`.
    pub(crate) fn new(
        name: &HcaName,
        endpoint: SocketAddr,
        keeper: &Keeper,
    ) -> anyhow::Result<Self> {
        let device = Device::open(name)?;
        let arena = |id, memory: BorrowedFd<'_>, bytes| -> anyhow::Result<Arena> {
            let bytes = usize::try_from(bytes).context("an arena beyond the address space")?;
            Ok(Arena { id: ArenaId(id), memory: memory.try_clone_to_owned()?, bytes })
        };
        let arenas = [
            arena(DATA_ARENA, keeper.arena.as_fd(), keeper.layout.arena_bytes())?,
            arena(RING_ARENA, keeper.rings.as_fd(), keeper.layout.rings_bytes())?,
        ];
        let lines = keeper
            .hints
            .chunks_exact(2)
            .map(|pair| {
                Ok(HintLines { to_host: pair[0].try_clone()?, to_card: pair[1].try_clone()? })
            })
            .collect::<io::Result<_>>()?;
        Ok(Self(HostMemory::new(&device, endpoint, &arenas, lines)?))
    }

    pub(crate) fn endpoint(&self) -> SocketAddr {
        self.0.endpoint()
    }

    /// Readable when [`Self::serve`] has something to do.
    pub(crate) fn event_fd(&self) -> BorrowedFd<'_> {
        self.0.event_fd()
    }

    /// Takes connections and passes hints, without waiting.
    pub(crate) fn serve(&mut self) -> io::Result<()> {
        self.0.serve_once().map(drop)
    }

    /// Takes an arena back and exports it anew.
    pub(crate) fn renew(&mut self, arena: u16) -> anyhow::Result<()> {
        Ok(self.0.renew(ArenaId(arena))?)
    }

    /// The blobs of the data arena and of the rings; `None` when one of them could not be exported anew.
    pub(crate) fn blobs(&self) -> Option<[[u8; RDMA_BLOB_BYTES]; 2]> {
        let blob = |id| self.0.blob(ArenaId(id))?.try_into().ok();
        Some([blob(DATA_ARENA)?, blob(RING_ARENA)?])
    }
}
