//! The DMA context against the host's end of it.

use std::collections::VecDeque;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::thread::JoinHandle;

use anyhow::{Context as _, bail, ensure};
use lunar_platform::{
    ArenaId, Dma, DmaCompletion, DmaError, DmaOperation, DmaRequest, HostAddress, Memory, Region,
};
use lunar_verbs_ibv::host_memory::{Arena, HintLines, HostMemory, StopServing};
use lunar_verbs_ibv::{Device, GroupPieces, IbvRegion};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::target::{Test, WANTED, wait};

pub const TESTS: &[(&str, Test)] = &[
    ("copies_in_order_with_host_memory", copies_in_order_with_host_memory),
    ("many_copies_at_a_time", many_copies_at_a_time),
    ("hints_in_both_directions", hints_in_both_directions),
    ("ranges_are_checked_at_once", ranges_are_checked_at_once),
    ("revoked_memory_fails_and_comes_back", revoked_memory_fails_and_comes_back),
    ("a_host_that_goes_is_gone", a_host_that_goes_is_gone),
    ("an_old_blob_is_refused", an_old_blob_is_refused),
];

const DATA: ArenaId = ArenaId(1);
const RINGS: ArenaId = ArenaId(2);
const BYTES: usize = 4 << 20;

/// The host: two arenas and the thread that serves them.
struct Host {
    memory: [File; 2],
    blobs: [Vec<u8>; 2],
    to_host: OwnedFd,
    to_card: OwnedFd,
    stop: StopServing,
    thread: Option<JoinHandle<HostMemory>>,
}

impl Host {
    fn new(device: &Device, address: Ipv4Addr) -> anyhow::Result<Self> {
        let memory = [memfd()?, memfd()?];
        let arenas = [arena(DATA, &memory[0])?, arena(RINGS, &memory[1])?];
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let (to_host, to_card) = (eventfd(0, flags)?, eventfd(0, flags)?);
        let lines = HintLines { to_host: to_host.try_clone()?, to_card: to_card.try_clone()? };
        let endpoint = SocketAddr::new(address.into(), 0);
        let mut host = HostMemory::new(device, endpoint, &arenas, vec![lines])?;
        let blob = |id| host.blob(id).context("no blob");
        let blobs = [blob(DATA)?, blob(RINGS)?];
        let stop = host.stopper();
        let thread = std::thread::spawn(move || {
            host.serve().expect("the host's memory is served");
            host
        });
        Ok(Self { memory, blobs, to_host, to_card, stop, thread: Some(thread) })
    }

    /// Ends the thread and gives what it served.
    fn stop(&mut self) -> anyhow::Result<HostMemory> {
        self.stop.request();
        let thread = self.thread.take().context("stopped before")?;
        thread.join().map_err(|_| anyhow::anyhow!("the host's thread panicked"))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop.request();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn memfd() -> anyhow::Result<File> {
    let file = File::from(rustix::fs::memfd_create("arena", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.set_len(BYTES as u64)?;
    Ok(file)
}

fn arena(id: ArenaId, memory: &File) -> anyhow::Result<Arena> {
    Ok(Arena { id, memory: memory.try_clone()?.into(), bytes: BYTES })
}

/// The card: one group and a region.
struct Card {
    pieces: GroupPieces,
    region: IbvRegion,
    completions: VecDeque<DmaCompletion>,
}

impl Card {
    fn new(device: &Device) -> anyhow::Result<Self> {
        let mut pieces = device.group(0, WANTED, device)?;
        let region = pieces.memory.claim(BYTES)?;
        Ok(Self { pieces, region, completions: VecDeque::new() })
    }

    fn import(&mut self, host: &Host) -> anyhow::Result<()> {
        for (blob, id) in host.blobs.iter().zip([DATA, RINGS]) {
            let arena = self.pieces.memory.import(blob)?;
            ensure!(arena.id == id && arena.length == BYTES as u64, "{arena:?}");
            ensure!(arena.key.is_none(), "the HCA cannot reach another machine's memory");
        }
        ensure!(self.pieces.dma.room() == 0, "there is room before there is a connection");
        wait("a connection", || {
            self.turn();
            Ok((self.pieces.dma.room() > 0).then_some(()))
        })
    }

    fn turn(&mut self) {
        let mut out = [DmaCompletion { id: 0, result: Ok(()) }; 8];
        let count = self.pieces.dma.poll(&mut out);
        self.completions.extend(&out[..count]);
    }

    fn submit(&mut self, id: u64, operation: DmaOperation) -> Result<(), DmaError> {
        self.pieces.dma.submit(DmaRequest { id, operation })
    }

    fn push(&self, from: usize, arena: ArenaId, to: usize, length: usize) -> DmaOperation {
        DmaOperation::Push {
            key: self.region.key(),
            address: self.region.base() + from as u64,
            host: HostAddress { arena, offset: to as u64 },
            length: length as u32,
        }
    }

    fn pull(&self, to: usize, arena: ArenaId, from: usize, length: usize) -> DmaOperation {
        DmaOperation::Pull {
            key: self.region.key(),
            address: self.region.base() + to as u64,
            host: HostAddress { arena, offset: from as u64 },
            length: length as u32,
        }
    }

    fn completion(&mut self) -> anyhow::Result<DmaCompletion> {
        wait("a DMA completion", || {
            self.turn();
            Ok(self.completions.pop_front())
        })
    }

    fn done(&mut self, id: u64) -> anyhow::Result<()> {
        let completion = self.completion()?;
        ensure!(completion == DmaCompletion { id, result: Ok(()) }, "{completion:?}, not {id}");
        Ok(())
    }
}

fn ok(result: Result<(), DmaError>) -> anyhow::Result<()> {
    result.map_err(|error| anyhow::anyhow!("submit: {error:?}"))
}

fn copies_in_order_with_host_memory(device: &Device, address: Ipv4Addr) -> anyhow::Result<()> {
    let host = Host::new(device, address)?;
    let mut card = Card::new(device)?;
    card.import(&host)?;
    for turn in 0..50u8 {
        card.region.bytes_mut(0, 4096).fill(turn);
        // A pull behind a push of the same bytes sees them; a push behind a pull is not seen by it.
        let (first, back) = (card.push(0, DATA, 512, 4096), card.pull(8192, DATA, 512, 4096));
        let (word, flush) = (card.push(0, RINGS, 64, 4), DmaOperation::Flush { arena: DATA });
        card.region.bytes_mut(4096, 4096).fill(0xee);
        let over = card.push(4096, DATA, 512, 4096);
        for (id, operation) in [first, back, over, flush, word].into_iter().enumerate() {
            ok(card.submit(id as u64, operation))?;
        }
        for id in 0..5 {
            card.done(id)?;
        }
        ensure!(card.region.bytes(8192, 4096).iter().all(|byte| *byte == turn), "out of order");
        let mut bytes = [0; 4096];
        host.memory[0].read_exact_at(&mut bytes, 512)?;
        ensure!(bytes.iter().all(|byte| *byte == 0xee), "the host does not see the push");
        let mut word = [0; 4];
        host.memory[1].read_exact_at(&mut word, 64)?;
        ensure!(word == [turn; 4], "the host does not see the word");
    }
    Ok(())
}

fn many_copies_at_a_time(device: &Device, address: Ipv4Addr) -> anyhow::Result<()> {
    let host = Host::new(device, address)?;
    let mut card = Card::new(device)?;
    card.import(&host)?;
    for (place, byte) in card.region.bytes_mut(0, BYTES).iter_mut().enumerate() {
        *byte = (place / 11) as u8;
    }
    let capacity = card.pieces.dma.room();
    ensure!(capacity >= 64, "room for {capacity}");
    let piece = BYTES / 512;
    let (mut submitted, mut completed) = (0, 0);
    while completed < 512 {
        while submitted < 512 && card.pieces.dma.room() > 0 {
            let operation = card.push(submitted * piece, DATA, submitted * piece, piece);
            ok(card.submit(submitted as u64, operation))?;
            submitted += 1;
        }
        if submitted < 512 {
            let full = card.submit(0, DmaOperation::Flush { arena: DATA });
            ensure!(full == Err(DmaError::Full), "{full:?}");
        }
        card.done(completed)?;
        completed += 1;
    }
    let mut bytes = vec![0; BYTES];
    host.memory[0].read_exact_at(&mut bytes, 0)?;
    ensure!(bytes == card.region.bytes(0, BYTES), "other bytes arrived");
    Ok(())
}

fn is_readable(fd: std::os::fd::BorrowedFd<'_>, seconds: i64) -> anyhow::Result<bool> {
    let timeout = Timespec { tv_sec: seconds, tv_nsec: 0 };
    Ok(poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&timeout))? == 1)
}

fn hints_in_both_directions(device: &Device, address: Ipv4Addr) -> anyhow::Result<()> {
    use std::os::fd::AsFd as _;
    let host = Host::new(device, address)?;
    let mut card = Card::new(device)?;
    card.import(&host)?;
    for turn in 0..100u64 {
        card.pieces.dma.ring_host(0);
        ensure!(is_readable(host.to_host.as_fd(), 20)?, "turn {turn}: the host was not woken");
        rustix::io::read(&host.to_host, &mut [0; 8])?;
        // Hints hold places in the send queue until something signalled follows.
        if turn % 8 == 7 {
            ok(card.submit(turn, DmaOperation::Flush { arena: RINGS }))?;
            card.done(turn)?;
        }
        wait("armed", || {
            card.turn();
            Ok(card.pieces.dma.arm().then_some(()))
        })?;
        rustix::io::write(&host.to_card, &1u64.to_ne_bytes())?;
        let fd = card.pieces.dma.event_fd().context("no descriptor")?;
        ensure!(is_readable(fd, 20)?, "turn {turn}: the card was not woken");
        wait("hint", || Ok((!card.pieces.dma.arm()).then_some(())))?;
    }
    Ok(())
}

fn ranges_are_checked_at_once(device: &Device, address: Ipv4Addr) -> anyhow::Result<()> {
    let host = Host::new(device, address)?;
    let mut card = Card::new(device)?;
    card.import(&host)?;
    let bad = [
        card.push(0, DATA, BYTES - 8, 9),
        card.push(0, ArenaId(9), 0, 8),
        card.push(BYTES - 8, DATA, 0, 9),
        card.pull(0, DATA, usize::MAX - 3, 8),
        DmaOperation::Flush { arena: ArenaId(9) },
        DmaOperation::Push {
            key: lunar_platform::LocalKey(0x4242),
            address: card.region.base(),
            host: HostAddress { arena: DATA, offset: 0 },
            length: 8,
        },
    ];
    for operation in bad {
        let refused = card.submit(1, operation);
        ensure!(refused == Err(DmaError::Protection), "{operation:?}: {refused:?}");
    }
    // Nothing of it reached the connection.
    let good = card.push(BYTES - 8, DATA, BYTES - 8, 8);
    ok(card.submit(2, good))?;
    card.done(2)
}

fn revoked_memory_fails_and_comes_back(device: &Device, address: Ipv4Addr) -> anyhow::Result<()> {
    let mut host = Host::new(device, address)?;
    let mut card = Card::new(device)?;
    card.import(&host)?;
    let mut memory = host.stop()?;
    memory.revoke(DATA);
    ensure!(memory.blob(DATA).is_none(), "a blob of what was taken back");
    let (push, pull) = (card.push(0, DATA, 0, 4096), card.pull(0, RINGS, 0, 4096));
    ok(card.submit(1, push))?;
    ok(card.submit(2, pull))?;
    let ends = [card.completion()?, card.completion()?];
    ensure!(ends[0] == DmaCompletion { id: 1, result: Err(DmaError::Protection) }, "{ends:?}");
    ensure!(ends[1] == DmaCompletion { id: 2, result: Err(DmaError::Gone) }, "{ends:?}");
    let refused = card.submit(3, pull);
    ensure!(refused == Err(DmaError::Gone), "{refused:?}");
    drop(memory);
    // The host starts anew: new memory, a new endpoint, a new secret.
    for id in [DATA, RINGS] {
        card.pieces.memory.unimport(id);
    }
    let host = Host::new(device, address)?;
    card.import(&host)?;
    ok(card.submit(4, push))?;
    card.done(4)
}

fn a_host_that_goes_is_gone(device: &Device, address: Ipv4Addr) -> anyhow::Result<()> {
    let host = Host::new(device, address)?;
    let mut card = Card::new(device)?;
    card.import(&host)?;
    drop(host);
    wait("an end", || {
        card.turn();
        match card.submit(1, DmaOperation::Flush { arena: DATA }) {
            Err(DmaError::Gone) => Ok(Some(())),
            Ok(()) | Err(DmaError::Full) => Ok(None),
            Err(error) => bail!("{error:?}"),
        }
    })?;
    card.turn();
    let wrong = card
        .completions
        .iter()
        .find(|end| !matches!(end.result, Ok(()) | Err(DmaError::Gone | DmaError::Protection)));
    ensure!(wrong.is_none(), "{wrong:?}");
    Ok(())
}

fn an_old_blob_is_refused(device: &Device, address: Ipv4Addr) -> anyhow::Result<()> {
    let host = Host::new(device, address)?;
    let mut card = Card::new(device)?;
    let mut blob = host.blobs[0].clone();
    // The last byte of the secret.
    *blob.last_mut().context("an empty blob")? ^= 1;
    card.pieces.memory.import(&blob)?;
    for _ in 0..200 {
        card.turn();
        std::thread::sleep(std::time::Duration::from_millis(2));
        ensure!(card.pieces.dma.room() == 0, "connected with a wrong secret");
    }
    // The right one works at once.
    card.import(&host)
}
