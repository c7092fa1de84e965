//! Both ends of one adapter as the hypervisor has them: queues, window, and what each end is told of the
//! other.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lunar_pcie::{HintLine, Segment};
use lunar_platform::UnitAddress;
use lunar_vscsi::crq::{Entry, TransportEvent};
use lunar_vscsi::hcall::code;

use crate::client::ClientPartition;
use crate::server::ServerAdapter;
use crate::tce::{SERVER_MAY_READ, SERVER_MAY_WRITE, TceTable};

/// Bytes of a page, of memory and of an I/O window.
pub const PAGE_BYTES: u64 = 4096;
/// Bytes of a queue entry.
const ENTRY_BYTES: u64 = 16;
/// Entries of the server's queue: one page of them.
const SERVER_ENTRIES: usize = (PAGE_BYTES / ENTRY_BYTES) as usize;
/// Places of the server's queue that only the hypervisor's own entries may use.
const SERVER_ENTRIES_RESERVED: usize = 8;

/// A new adapter pair. The client partition has `memory_bytes` of memory, and an I/O window of
/// `window_bytes` at I/O address zero; `unit` names the adapter to the server.
///
/// # Errors
/// When there is no memory or no descriptor for the interrupt lines.
pub fn pair(
    unit: UnitAddress,
    memory_bytes: usize,
    window_bytes: u64,
) -> io::Result<(ClientPartition, ServerAdapter)> {
    let memory = Segment::anonymous(memory_bytes)?;
    let (client_line, server_line) = (HintLine::new()?, HintLine::new()?);
    let pair = Arc::new(Mutex::new(Pair {
        memory: memory.clone(),
        tces: TceTable::new(window_bytes),
        client: None,
        client_enabled: true,
        client_signals: false,
        client_line: client_line.clone(),
        server: None,
        server_line: server_line.clone(),
        window_open: true,
        ready_for_suspend: false,
        refusals: VecDeque::new(),
    }));
    let client = ClientPartition::new(Arc::clone(&pair), memory, client_line);
    Ok((client, ServerAdapter { unit, pair, line: server_line }))
}

/// The client's queue, which lies in the client's memory.
#[derive(Clone, Copy, Debug)]
struct ClientQueue {
    address: u64,
    entries: u64,
    next: u64,
}

/// One adapter pair.
#[derive(Debug)]
pub(crate) struct Pair {
    memory: Segment,
    tces: TceTable,
    client: Option<ClientQueue>,
    /// Whether the client's queue takes entries: not between a migration and H_ENABLE_CRQ.
    client_enabled: bool,
    client_signals: bool,
    client_line: HintLine,
    server: Option<VecDeque<[u8; 16]>>,
    server_line: HintLine,
    /// Whether the server may copy at all: not when the client partition is gone.
    window_open: bool,
    ready_for_suspend: bool,
    /// Codes that the server's next sends are to return instead of being carried out.
    refusals: VecDeque<i64>,
}

/// The pair behind a lock that a panicking holder cannot spoil: nothing is left half done in it.
pub(crate) fn lock(pair: &Mutex<Pair>) -> MutexGuard<'_, Pair> {
    pair.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pair {
    /// The client's H_REG_CRQ.
    pub(crate) fn register_client(&mut self, address: u64, bytes: u64) -> i64 {
        if self.client.is_some() {
            return code::RESOURCE;
        }
        let sound = bytes >= PAGE_BYTES
            && bytes.is_multiple_of(PAGE_BYTES)
            && address.is_multiple_of(PAGE_BYTES);
        let access = SERVER_MAY_READ | SERVER_MAY_WRITE;
        if !sound || self.tces.translate(address, bytes, access).is_none() {
            return code::PARAMETER;
        }
        self.client = Some(ClientQueue { address, entries: bytes / ENTRY_BYTES, next: 0 });
        self.client_enabled = true;
        self.window_open = true;
        if self.server.is_some() { code::SUCCESS } else { code::CLOSED }
    }

    /// The client's H_FREE_CRQ: the server hears of it.
    pub(crate) fn free_client(&mut self) -> i64 {
        if self.client.take().is_none() {
            return code::NOT_FOUND;
        }
        self.client_signals = false;
        self.tell_server(TransportEvent::PartnerDeregistered);
        code::SUCCESS
    }

    /// The client's H_ENABLE_CRQ: after a migration the queue goes on.
    pub(crate) fn enable_client(&mut self) -> i64 {
        if self.client.is_none() {
            return code::PARAMETER;
        }
        self.client_enabled = true;
        code::SUCCESS
    }

    /// The client's H_VIO_SIGNAL.
    pub(crate) fn signal_client(&mut self, on: bool) -> i64 {
        if self.client.is_none() {
            return code::PARAMETER;
        }
        self.client_signals = on;
        code::SUCCESS
    }

    /// The client's H_SEND_CRQ.
    pub(crate) fn send_to_server(&mut self, entry: [u8; 16]) -> i64 {
        if self.client.is_none() {
            return code::NOT_FOUND;
        }
        if !is_partners(entry) {
            return code::PARAMETER;
        }
        if !self.client_enabled {
            return code::CLOSED;
        }
        match &mut self.server {
            None => code::CLOSED,
            Some(queue) if queue.len() >= SERVER_ENTRIES - SERVER_ENTRIES_RESERVED => code::DROPPED,
            Some(queue) => {
                queue.push_back(entry);
                self.server_line.signal();
                code::SUCCESS
            }
        }
    }

    /// The server's H_REG_CRQ.
    pub(crate) fn register_server(&mut self) -> i64 {
        if self.server.is_some() {
            return code::RESOURCE;
        }
        self.server = Some(VecDeque::with_capacity(SERVER_ENTRIES));
        if self.client.is_some() { code::SUCCESS } else { code::CLOSED }
    }

    /// The server's H_FREE_CRQ: the client hears of it.
    pub(crate) fn free_server(&mut self) -> i64 {
        if self.server.take().is_none() {
            return code::NOT_FOUND;
        }
        self.tell_client(TransportEvent::PartnerDeregistered);
        code::SUCCESS
    }

    /// The server's H_SEND_CRQ.
    pub(crate) fn send_to_client(&mut self, entry: [u8; 16]) -> i64 {
        if let Some(refusal) = self.refusals.pop_front() {
            return refusal;
        }
        if self.server.is_none() {
            return code::NOT_FOUND;
        }
        if !is_partners(entry) {
            return code::PARAMETER;
        }
        if self.client.is_none() || !self.client_enabled {
            return code::CLOSED;
        }
        self.deliver(entry)
    }

    /// Puts an entry into the client's queue: the second half first, so that the entry is whole when its first
    /// byte appears.
    fn deliver(&mut self, entry: [u8; 16]) -> i64 {
        let Some(queue) = &mut self.client else { return code::CLOSED };
        let address = queue.address + queue.next * ENTRY_BYTES;
        let access = SERVER_MAY_READ | SERVER_MAY_WRITE;
        let place = self.tces.translate(address, ENTRY_BYTES, access);
        // An entry never crosses a page.
        let Some(&[(place, _)]) = place.as_deref() else { return code::REMOTE_PARM };
        let mut valid = [0];
        if !self.memory.read(place, &mut valid) {
            return code::REMOTE_PARM;
        }
        if valid != [0] {
            return code::DROPPED;
        }
        let (first, second) = entry.split_at(8);
        self.memory.write(place + 8, second);
        fence(Ordering::Release);
        self.memory.write(place, first);
        queue.next = (queue.next + 1) % queue.entries;
        if self.client_signals {
            self.client_line.signal();
        }
        code::SUCCESS
    }

    /// The next entry of the server's queue.
    pub(crate) fn take_servers_entry(&mut self) -> Option<[u8; 16]> {
        self.server.as_mut()?.pop_front()
    }

    pub(crate) fn servers_queue_holds_any(&self) -> bool {
        self.server.as_ref().is_some_and(|queue| !queue.is_empty())
    }

    /// H_COPY_RDMA between the client's window and the server's memory: gives the ranges of client memory, or
    /// the call's return code.
    pub(crate) fn window(
        &self,
        address: u64,
        bytes: u64,
        to_client: bool,
    ) -> Result<Vec<(u64, u64)>, i64> {
        if !self.window_open {
            return Err(code::PERMISSION);
        }
        let (access, wrong_end) = if to_client {
            (SERVER_MAY_WRITE, code::DEST_PARM)
        } else {
            (SERVER_MAY_READ, code::SOURCE_PARM)
        };
        let ranges = self.tces.translate(address, bytes, access).ok_or(wrong_end)?;
        let memory_bytes = self.memory.len() as u64;
        let inside = |(at, bytes): &(u64, u64)| {
            at.checked_add(*bytes).is_some_and(|end| end <= memory_bytes)
        };
        if ranges.iter().all(inside) { Ok(ranges) } else { Err(wrong_end) }
    }

    pub(crate) fn memory(&self) -> &Segment {
        &self.memory
    }

    pub(crate) fn tces(&mut self) -> &mut TceTable {
        &mut self.tces
    }

    /// The client partition crashed, or was powered off.
    pub(crate) fn fail_client(&mut self) {
        self.client = None;
        self.client_signals = false;
        self.window_open = false;
        self.tell_server(TransportEvent::PartnerFailed);
    }

    /// The client partition was moved: both ends hear of it, and its queue rests until H_ENABLE_CRQ.
    pub(crate) fn migrate_client(&mut self) {
        self.tell_client(TransportEvent::Migrated);
        self.client_enabled = false;
        self.tell_server(TransportEvent::Migrated);
    }

    /// The client partition is going to be suspended.
    pub(crate) fn prepare_for_suspend(&mut self) {
        self.ready_for_suspend = false;
        self.tell_server(TransportEvent::PrepareForSuspend);
    }

    /// The client partition goes on.
    pub(crate) fn resume(&mut self) {
        self.tell_server(TransportEvent::Resume);
    }

    /// The server's H_VIOCTL.
    pub(crate) fn set_ready_for_suspend(&mut self) -> i64 {
        if self.server.is_none() {
            return code::NOT_FOUND;
        }
        self.ready_for_suspend = true;
        code::SUCCESS
    }

    pub(crate) fn is_ready_for_suspend(&self) -> bool {
        self.ready_for_suspend
    }

    pub(crate) fn refuse(&mut self, code: i64) {
        self.refusals.push_back(code);
    }

    /// The hypervisor's own entries fit always: when even their places are taken, the oldest is overwritten, as
    /// news about the partner make old news of it.
    fn tell_server(&mut self, event: TransportEvent) {
        let Some(queue) = &mut self.server else { return };
        if queue.len() >= SERVER_ENTRIES {
            queue.pop_front();
        }
        queue.push_back(Entry::transport(event).to_bytes());
        self.server_line.signal();
    }

    /// Lost when the client does not read its queue: then it is not going to hear of anything.
    fn tell_client(&mut self, event: TransportEvent) {
        if self.client_enabled {
            self.deliver(Entry::transport(event).to_bytes());
        }
    }
}

/// Whether a partition may send this: commands and the handshake, but no transport event, which are the
/// hypervisor's.
fn is_partners(entry: [u8; 16]) -> bool {
    let [valid, ..] = entry;
    valid & 0x80 != 0 && valid != 0xFF
}
