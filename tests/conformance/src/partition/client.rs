//! What a hypervisor has of a client partition: its memory, its I/O window, and the queue that it registered there.

use std::sync::atomic::{Ordering, fence};

use lunar_hypervisor::{PAGE_BYTES, SERVER_MAY_READ, SERVER_MAY_WRITE, TceTable};
use lunar_pcie::Segment;
use lunar_vscsi::hcall::code;

/// Bytes of a queue's entry.
const ENTRY_BYTES: u64 = 16;
/// Bytes of a queue (VSCSI_WIRE, hypervisor calls).
const QUEUE_BYTES_MAX: u64 = 0x1000_0000;

/// A client partition.
pub struct Client {
    memory: Segment,
    window: TceTable,
    queue: Option<Queue>,
    /// Whether entries are to interrupt it.
    pub signals: bool,
}

#[derive(Clone, Copy)]
struct Queue {
    address: u64,
    bytes: u64,
    /// Where the next entry goes.
    next: u64,
}

impl Client {
    /// A partition whose window begins at I/O address zero and maps nothing.
    pub fn new(memory: Segment, window_bytes: u64) -> Client {
        Client { memory, window: TceTable::new(window_bytes), queue: None, signals: false }
    }

    /// Maps `count` pages from I/O address `address` on, each as `tce` says of its place. Pages outside the window are
    /// refused by the hypervisor proper, and stay unmapped here.
    pub fn map(&mut self, address: u64, count: u64, mut tce: impl FnMut(u64) -> u64) {
        for page in 0..count {
            if !self.window.put(address.wrapping_add(page.wrapping_mul(PAGE_BYTES)), tce(page)) {
                return;
            }
        }
    }

    /// The word at real address `address`, big-endian as PAPR has it in memory.
    pub fn word(&self, address: u64) -> Option<u64> {
        let mut word = [0; 8];
        self.memory.read(address, &mut word).then(|| u64::from_be_bytes(word))
    }

    /// The queue as (I/O address, bytes).
    pub fn queue(&self) -> Option<(u64, u64)> {
        self.queue.map(|queue| (queue.address, queue.bytes))
    }

    /// H_REG_CRQ, as far as it is the client's own affair.
    pub fn register(&mut self, address: u64, bytes: u64) -> i64 {
        let both = SERVER_MAY_READ | SERVER_MAY_WRITE;
        let is_whole = (PAGE_BYTES..=QUEUE_BYTES_MAX).contains(&bytes)
            && bytes.is_multiple_of(PAGE_BYTES)
            && address.is_multiple_of(PAGE_BYTES);
        if self.queue.is_some() {
            return code::RESOURCE;
        }
        if !is_whole || self.window.translate(address, bytes, both).is_none() {
            return code::PARAMETER;
        }
        self.queue = Some(Queue { address, bytes, next: 0 });
        code::SUCCESS
    }

    /// H_FREE_CRQ. Signals stay as they are.
    pub fn free(&mut self) {
        self.queue = None;
    }

    /// Puts an entry into the client's queue; H_CLOSED without one, H_DROPPED when it is full. The client looks at the
    /// first byte, so that comes last.
    pub fn deliver(&mut self, entry: [u8; 16]) -> i64 {
        let Some(queue) = self.queue else { return code::CLOSED };
        let mut valid = [0];
        let place = self.window.translate(queue.address + queue.next, ENTRY_BYTES, 0);
        let Some(&[(real, _)]) = place.as_deref() else { return code::HARDWARE };
        if !self.memory.read(real, &mut valid) {
            return code::HARDWARE;
        }
        if valid[0] != 0 {
            return code::DROPPED;
        }
        self.memory.write(real + 8, &entry[8..]);
        fence(Ordering::SeqCst);
        self.memory.write(real, &entry[..8]);
        fence(Ordering::SeqCst);
        let next = (queue.next + ENTRY_BYTES) % queue.bytes;
        self.queue = Some(Queue { next, ..queue });
        code::SUCCESS
    }

    /// What the server may read at I/O address `address`.
    pub fn read(&self, address: u64, bytes: u32) -> Option<Vec<u8>> {
        let mut read = vec![0; bytes as usize];
        let mut rest = &mut read[..];
        for (real, length) in self.window.translate(address, bytes.into(), SERVER_MAY_READ)? {
            let (piece, behind) = rest.split_at_mut(length as usize);
            if !self.memory.read(real, piece) {
                return None;
            }
            rest = behind;
        }
        Some(read)
    }

    /// Writes for the server at I/O address `address`; whether it may.
    pub fn write(&self, address: u64, bytes: &[u8]) -> bool {
        let ranges = self.window.translate(address, bytes.len() as u64, SERVER_MAY_WRITE);
        let mut rest = bytes;
        for (real, length) in ranges.iter().flatten() {
            let (piece, behind) = rest.split_at(*length as usize);
            if !self.memory.write(*real, piece) {
                return false;
            }
            rest = behind;
        }
        ranges.is_some()
    }
}
