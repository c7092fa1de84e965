//! A card with one ring backend on the emulated PCIe, and a model of the host agent that serves the
//! ring from the other side with `offload-proto`'s consumer and producer.
#![allow(dead_code)] // Each test file uses a part.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use lunar_backend::ring::{RingBackend, RingSetup};
use lunar_backend::{BlockRange, BlockRequest, NoRoom, OperationData, Outcome, Submission};
use lunar_dma::sgv::{Buffer, Config, Placement, SgvCache, Share};
use lunar_offload_proto::cursor::{Consumer, Producer};
use lunar_offload_proto::ring::{
    CompletionEntry, FLAG_SIDE, Operation, Outcome as Code, RingLayout, SideRecord, SubmissionEntry,
};
use lunar_pcie::{
    AddressSpace, Backing, CardMemory, CardRegion, DmaConfig, DmaMode, EmulatedDma, ExportBlob,
    HintLine, HostSlot, PlacementMode, RingWindow, Segment,
};
use lunar_platform::{
    ArenaId, CmError, CmEvent, ConnectRequest, Hca, HcaAttributes, Listener, LocalKey, Memory,
    Nanoseconds, Platform, PostError, QpHandle, QpParameters, ReceiveRequest, Region, SendRequest,
    WorkCompletion,
};

pub const BLOCK_BYTES: usize = 512;
pub const DISK_BLOCKS: usize = 64;
pub const CAPACITY: u32 = 64;
pub const ARENA: ArenaId = ArenaId(9);
const BLOB: ExportBlob = ExportBlob { arena: ARENA, secret: [7; 16] };
const DATA_BYTES: u64 = 256 << 10;

/// A platform with memory and DMA; there is no HCA, so nothing can be one.
pub struct DmaOnly;
pub enum Never {}

impl Platform for DmaOnly {
    type Region = CardRegion;
    type Connection = Never;
    type Listener = Never;
    type Hca = Never;
    type Dma = EmulatedDma;
    type Memory = CardMemory;
}

impl Listener for Never {
    type Connection = Never;
    fn poll(&mut self) -> Option<ConnectRequest<Never>> {
        match *self {}
    }
    fn reject(&mut self, _: Never, _: &[u8]) {
        match *self {}
    }
    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        match *self {}
    }
}

impl Hca for Never {
    type Connection = Never;
    fn attributes(&self) -> HcaAttributes {
        match *self {}
    }
    fn accept(&mut self, _: Never, _: QpParameters, _: &[u8]) -> Result<QpHandle, CmError> {
        match *self {}
    }
    fn reject(&mut self, _: Never, _: &[u8]) {
        match *self {}
    }
    fn disconnect(&mut self, _: QpHandle) {
        match *self {}
    }
    fn destroy(&mut self, _: QpHandle) {
        match *self {}
    }
    fn poll_cm(&mut self) -> Option<CmEvent> {
        match *self {}
    }
    fn post_receive(&mut self, _: ReceiveRequest) -> Result<(), PostError> {
        match *self {}
    }
    fn post_send(&mut self, _: QpHandle, _: &[SendRequest]) -> Result<(), PostError> {
        match *self {}
    }
    fn ring(&mut self, _: QpHandle) {
        match *self {}
    }
    fn poll(&mut self, _: &mut [WorkCompletion]) -> usize {
        match *self {}
    }
    fn arm(&mut self) -> bool {
        match *self {}
    }
    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        match *self {}
    }
}

/// An operation the agent has taken and not ended.
pub struct Started {
    pub entry: SubmissionEntry,
    pub cdb: Vec<u8>,
    pub ranges: Vec<BlockRange>,
}

/// The model agent: a disk of [`DISK_BLOCKS`] blocks behind the rings.
pub struct Agent {
    pub submissions: Consumer<SubmissionEntry, RingWindow>,
    pub completions: Producer<CompletionEntry, RingWindow>,
    pub memory: Segment,
    pub disk: Vec<u8>,
    pub started: VecDeque<Started>,
}

impl Agent {
    /// Takes up to `count` entries. CANCELs are answered at once: of a started operation it ends.
    pub fn take(&mut self, count: usize) -> usize {
        let mut taken = 0;
        while taken < count
            && let Some(entry) = self.submissions.pop().expect("the card keeps the contract")
        {
            taken += 1;
            entry.check().expect("the card sends well-formed entries");
            let mut side = SideRecord::empty();
            if entry.has(FLAG_SIDE) {
                self.submissions.read_side(entry.sequence.get(), &mut side);
            }
            if entry.operation() != Operation::Cancel {
                let cdb = side.cdb().unwrap().to_vec();
                let ranges = side.ranges().unwrap().to_vec();
                self.started.push_back(Started { entry, cdb, ranges });
                continue;
            }
            let wanted = entry.cancelled_token();
            let found = self.started.iter().position(|one| one.entry.token.get() == wanted);
            if let Some(found) = found {
                self.started.remove(found);
                self.complete(CompletionEntry::new(wanted, Code::Cancelled), None);
            }
            let answer = if found.is_some() { Code::Done } else { Code::TooLate };
            self.complete(CompletionEntry::new(entry.token.get(), answer), None);
        }
        self.submissions.release();
        taken
    }

    /// Carries the started operation `index` out and completes it.
    pub fn finish(&mut self, index: usize) {
        let Some(Started { entry, cdb, ranges }) = self.started.remove(index) else { return };
        let mut completion = CompletionEntry::new(entry.token.get(), Code::Done);
        let length = entry.data_bytes.get() as usize;
        completion.transferred_bytes.set(length as u32);
        let at = entry.lba.get() as usize * BLOCK_BYTES;
        match entry.operation() {
            Operation::Read => {
                assert_eq!(length, entry.blocks.get() as usize * BLOCK_BYTES);
                assert!(self.memory.write(entry.data_offset.get(), &self.disk[at..at + length]));
            }
            Operation::Write => {
                assert_eq!(length, entry.blocks.get() as usize * BLOCK_BYTES);
                let to = &mut self.disk[at..at + length];
                assert!(self.memory.read(entry.data_offset.get(), to));
            }
            Operation::Flush => {}
            Operation::Unmap => {
                for range in ranges {
                    let at = range.lba.get() as usize * BLOCK_BYTES;
                    self.disk[at..at + range.blocks.get() as usize * BLOCK_BYTES].fill(0);
                }
            }
            Operation::CompareAndWrite => {
                let mut data = vec![0; length];
                assert!(self.memory.read(entry.data_offset.get(), &mut data));
                let (expected, new) = data.split_at(length / 2);
                let stored = &mut self.disk[at..at + length / 2];
                match stored.iter().zip(expected).position(|(one, other)| one != other) {
                    None => stored.copy_from_slice(new),
                    Some(offset) => {
                        completion.outcome = Code::Miscompare.code();
                        completion.detail.set(offset as u64);
                    }
                }
            }
            Operation::Forward => {
                // Echoes the CDB as sense data, so that the test sees both ways.
                completion.outcome = Code::Forwarded.code();
                completion.status = 2;
                let sense = &cdb[..cdb.len().min(252)];
                completion.sense_bytes.set(sense.len() as u16);
                let mut side = SideRecord::empty();
                side.set_sense(sense).unwrap();
                return self.complete(completion, Some(&side));
            }
            other => panic!("the card does not send {other} yet"),
        }
        self.complete(completion, None);
    }

    /// Publishes a completion. The sums promise that there is always room for one.
    pub fn complete(&mut self, completion: CompletionEntry, side: Option<&SideRecord>) {
        self.completions.push(completion, side).expect("room for every completion owed");
        self.completions.publish();
    }

    /// Takes and finishes everything there is.
    pub fn serve(&mut self) {
        while self.take(usize::MAX) > 0 || !self.started.is_empty() {
            self.finish(0);
        }
    }
}

pub struct Rig {
    pub slot: HostSlot,
    pub memory: CardMemory,
    pub card: CardRegion,
    pub card_cache: SgvCache,
    pub host_cache: SgvCache,
    pub share: Share,
    pub ring: RingBackend<DmaOnly>,
    pub agent: Agent,
    pub setup: RingSetup,
    pub to_host: HintLine,
    pub to_card: HintLine,
    pub now: Nanoseconds,
}

/// What a rig is made from.
#[derive(Clone, Copy)]
pub struct Plan {
    pub slots: u32,
    /// `None` is prompt mode.
    pub seed: Option<u64>,
    pub dma_capacity: usize,
    pub hints_lost_per_mille: u16,
    pub staging_bytes_max: u64,
    /// Sequences that the rings start with.
    pub start: u32,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            slots: 8,
            seed: None,
            dma_capacity: 64,
            hints_lost_per_mille: 0,
            staging_bytes_max: u64::MAX,
            start: 0,
        }
    }
}

impl Rig {
    pub fn new(plan: Plan) -> Self {
        let layout = RingLayout::new(plan.slots).unwrap();
        let ring_bytes = layout.bytes().next_multiple_of(64);
        let data_offset = (2 * ring_bytes).next_multiple_of(4096);
        let host = Segment::anonymous((data_offset + DATA_BYTES) as usize).unwrap();
        let placement =
            plan.seed.map_or(PlacementMode::Prompt, |seed| PlacementMode::Withheld { seed });
        let mode = plan.seed.map_or(DmaMode::Prompt, |seed| DmaMode::Adversarial { seed });
        let slot = HostSlot::new(placement);
        slot.plug(BLOB, &host);
        let space = AddressSpace::new();
        let (to_host, to_card) = (HintLine::new().unwrap(), HintLine::new().unwrap());
        let config = DmaConfig {
            mode,
            capacity: plan.dma_capacity,
            hints_lost_per_mille: plan.hints_lost_per_mille,
        };
        let dma =
            EmulatedDma::new(space.clone(), slot.clone(), to_host.clone(), to_card.clone(), config);
        let mut memory = CardMemory::new(space, Some(slot.clone()), Backing::Anonymous, 64 << 20);
        let arena = memory.import(&BLOB.encode()).unwrap();
        let card = memory.claim(DATA_BYTES as usize).unwrap();
        let setup = RingSetup {
            ring: 1,
            arena: ARENA,
            layout,
            submission_offset: 0,
            completion_offset: ring_bytes,
            submission_sequence: plan.start,
            completion_sequence: plan.start,
            data_arena: ARENA,
            data_offset,
            staging_offset: data_offset,
            staging_bytes_max: plan.staging_bytes_max,
        };
        let cache = |placement, key: LocalKey, base| {
            let config =
                Config { class_bytes_min: 512, class_bytes_max: 64 << 10, ..Config::default() };
            SgvCache::new(placement, key, base, DATA_BYTES, config)
        };
        let submission = RingWindow::new(&host, 0, layout).unwrap();
        let completion = RingWindow::new(&host, ring_bytes, layout).unwrap();
        use lunar_offload_proto::cursor::RingMemory;
        for window in [&submission, &completion] {
            window.store_release(layout.published_offset(), plan.start);
            window.store_release(layout.consumed_offset(), plan.start);
        }
        let agent = Agent {
            submissions: Consumer::resume(layout, submission, plan.start),
            completions: Producer::resume(layout, completion, plan.start),
            memory: host,
            disk: vec![0; DISK_BLOCKS * BLOCK_BYTES],
            started: VecDeque::new(),
        };
        let ring = match RingBackend::new(&mut memory, dma, setup, CAPACITY) {
            Ok(ring) => ring,
            Err((_, error)) => panic!("{error}"),
        };
        Self {
            slot,
            card_cache: cache(Placement::CardDram, card.key(), card.base()),
            host_cache: cache(Placement::HostDram, arena.key.unwrap(), arena.base + data_offset),
            share: Share::new(u64::MAX),
            memory,
            card,
            ring,
            agent,
            setup,
            to_host,
            to_card,
            now: Nanoseconds(0),
        }
    }

    pub fn claim(&mut self, placement: Placement, bytes: u32) -> Buffer {
        let cache = match placement {
            Placement::CardDram => &mut self.card_cache,
            Placement::HostDram => &mut self.host_cache,
        };
        cache.claim(bytes, &mut self.share).unwrap()
    }

    pub fn release(&mut self, buffer: Buffer) {
        let cache = match buffer.placement() {
            Placement::CardDram => &mut self.card_cache,
            Placement::HostDram => &mut self.host_cache,
        };
        cache.release(buffer, &mut self.share, self.now);
    }

    /// What the HCA does when it fetches data-out from an initiator.
    pub fn fetch_data_out(&mut self, buffer: &Buffer, bytes: &[u8]) {
        match buffer.placement() {
            Placement::CardDram => {
                self.card.bytes_mut(buffer.offset() as usize, bytes.len()).copy_from_slice(bytes)
            }
            Placement::HostDram => {
                let offset = self.setup.data_offset + buffer.offset();
                assert!(self.slot.hca_write(ARENA, offset, bytes));
            }
        }
    }

    /// What the HCA would send to an initiator.
    pub fn data_in(&self, buffer: &Buffer, length: usize) -> Vec<u8> {
        match buffer.placement() {
            Placement::CardDram => self.card.bytes(buffer.offset() as usize, length).to_vec(),
            Placement::HostDram => {
                let mut bytes = vec![0; length];
                let offset = self.setup.data_offset + buffer.offset();
                assert!(self.agent.memory.read(offset, &mut bytes));
                bytes
            }
        }
    }

    pub fn submit(
        &mut self,
        token: u64,
        request: BlockRequest,
        data: Option<&Buffer>,
        data_bytes: u32,
        cdb: &[u8],
    ) -> Result<(), NoRoom> {
        let submission = Submission {
            token,
            unit: 5,
            nexus: 6,
            configuration_generation: 7,
            nexus_generation: 8,
            request,
            data: data.map(OperationData::from),
            data_bytes,
            cdb,
            ranges: &[],
        };
        self.ring.submit(&submission, &mut self.host_cache)
    }

    pub fn unmap(&mut self, token: u64, ranges: &[BlockRange]) -> Result<(), NoRoom> {
        let submission = Submission {
            token,
            unit: 5,
            nexus: 6,
            configuration_generation: 7,
            nexus_generation: 8,
            request: BlockRequest::Unmap,
            data: None,
            data_bytes: 0,
            cdb: &[],
            ranges,
        };
        self.ring.submit(&submission, &mut self.host_cache)
    }

    pub fn read(&mut self, token: u64, lba: u64, blocks: u32, data: &Buffer) -> Result<(), NoRoom> {
        let bytes = blocks * BLOCK_BYTES as u32;
        self.submit(token, BlockRequest::Read { lba, blocks }, Some(data), bytes, &[])
    }

    pub fn write(
        &mut self,
        token: u64,
        lba: u64,
        blocks: u32,
        data: &Buffer,
    ) -> Result<(), NoRoom> {
        let bytes = blocks * BLOCK_BYTES as u32;
        let request = BlockRequest::Write { lba, blocks, fua: true };
        self.submit(token, request, Some(data), bytes, &[])
    }

    pub fn tick(&mut self) -> bool {
        self.now = self.now.plus(1000);
        self.ring.tick(self.now, &mut self.host_cache)
    }

    /// Ticks often enough for everything on its way to arrive.
    pub fn settle(&mut self) {
        for _ in 0..300 {
            self.tick();
        }
    }

    pub fn outcomes(&mut self) -> Vec<Outcome> {
        let mut out = [Outcome::EMPTY; 3];
        let mut all = Vec::new();
        loop {
            let count = self.ring.poll(&mut out);
            if count == 0 {
                return all;
            }
            all.extend_from_slice(&out[..count]);
        }
    }

    /// Ticks and lets the agent serve until `token` ended.
    pub fn run(&mut self, token: u64) -> Outcome {
        for _ in 0..2000 {
            self.tick();
            assert_eq!(self.ring.fault(), None);
            self.agent.serve();
            if let Some(outcome) = self.outcomes().into_iter().find(|one| one.token == token) {
                return outcome;
            }
        }
        panic!("operation {token:#x} never ended");
    }
}

/// Prompt mode and some seeds of the adversary.
pub fn modes() -> impl Iterator<Item = Option<u64>> {
    std::iter::once(None).chain((0..24).map(Some))
}
