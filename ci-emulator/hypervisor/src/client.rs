//! A client partition: memory, and the calls by which its operating system speaks to the hypervisor. What
//! it sends is the caller's.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use lunar_pcie::{HintLine, Segment};
use lunar_vscsi::hcall::code;

use crate::pair::{PAGE_BYTES, Pair, lock};

/// A client partition with one adapter. Clones are the same partition.
#[derive(Clone, Debug)]
pub struct ClientPartition {
    pair: Arc<Mutex<Pair>>,
    memory: Segment,
    line: HintLine,
}

impl ClientPartition {
    pub(crate) fn new(pair: Arc<Mutex<Pair>>, memory: Segment, line: HintLine) -> Self {
        Self { pair, memory, line }
    }

    /// The partition's memory. Its offsets are real addresses.
    #[must_use]
    pub fn memory(&self) -> &Segment {
        &self.memory
    }

    /// The adapter's interrupt: becomes readable when an entry came while signals were on.
    #[must_use]
    pub fn interrupt(&self) -> BorrowedFd<'_> {
        self.line.fd()
    }

    /// Takes the interrupt; whether there was one.
    #[must_use]
    pub fn take_interrupt(&self) -> bool {
        self.line.drain()
    }

    /// H_PUT_TCE: maps the page at I/O address `address` to the real page in `tce`, whose low bits are the
    /// access; zero unmaps. Gives the return code, as all calls here do.
    pub fn put_tce(&self, address: u64, tce: u64) -> i64 {
        self.put_tces(address, &[tce])
    }

    /// H_STUFF_TCE: the same TCE for `count` pages from `address` on.
    pub fn stuff_tce(&self, address: u64, tce: u64, count: u64) -> i64 {
        self.put_each(address, (0..count).map(|_| tce))
    }

    /// H_PUT_TCE_INDIRECT: one TCE a page from `address` on.
    pub fn put_tces(&self, address: u64, tces: &[u64]) -> i64 {
        self.put_each(address, tces.iter().copied())
    }

    fn put_each(&self, address: u64, tces: impl Iterator<Item = u64>) -> i64 {
        let mut pair = lock(&self.pair);
        for (page, tce) in (0..).zip(tces) {
            let address = address.checked_add(page * PAGE_BYTES);
            if !address.is_some_and(|address| pair.tces().put(address, tce)) {
                return code::PARAMETER;
            }
        }
        code::SUCCESS
    }

    /// H_REG_CRQ: H_SUCCESS when the server's queue is there, H_CLOSED when ours is and the server's is not,
    /// H_RESOURCE when ours was already, H_PARAMETER for a queue that is not whole pages mapped for reading and
    /// writing.
    pub fn register_queue(&self, address: u64, bytes: u64) -> i64 {
        lock(&self.pair).register_client(address, bytes)
    }

    /// H_FREE_CRQ.
    pub fn free_queue(&self) -> i64 {
        lock(&self.pair).free_client()
    }

    /// H_ENABLE_CRQ.
    pub fn enable_queue(&self) -> i64 {
        lock(&self.pair).enable_client()
    }

    /// H_VIO_SIGNAL.
    pub fn signal(&self, on: bool) -> i64 {
        lock(&self.pair).signal_client(on)
    }

    /// H_SEND_CRQ: H_CLOSED when the server has no queue, H_DROPPED when that is full, H_PARAMETER for an entry
    /// that no partition may send, H_NOT_FOUND without a queue of our own.
    pub fn send(&self, entry: [u8; 16]) -> i64 {
        lock(&self.pair).send_to_server(entry)
    }

    /// The partition crashes: its queue and its window are gone, and the server gets FF01. Its next H_REG_CRQ is
    /// that of its next life.
    pub fn crash(&self) {
        lock(&self.pair).fail_client();
    }

    /// The partition is moved to another machine: FF06 for both ends.
    pub fn migrate(&self) {
        lock(&self.pair).migrate_client();
    }

    /// The partition is going to be suspended: FF09 for the server, who says when it is ready.
    pub fn prepare_for_suspend(&self) {
        lock(&self.pair).prepare_for_suspend();
    }

    /// Whether the server has said so since.
    #[must_use]
    pub fn is_ready_for_suspend(&self) -> bool {
        lock(&self.pair).is_ready_for_suspend()
    }

    /// The partition goes on: FF0A for the server.
    pub fn resume(&self) {
        lock(&self.pair).resume();
    }

    /// Makes one H_SEND_CRQ of the server return `code`, behind those asked for before.
    pub fn refuse_servers_send(&self, code: i64) {
        lock(&self.pair).refuse(code);
    }
}
