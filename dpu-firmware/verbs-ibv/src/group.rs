//! One poll group's share of the device: one CQ, one SRQ, its queue pairs, the events of its
//! connections, and sleeping.
//!
//! A work request's `wr_id` at the device is ours, not the poster's, so that a completion leads to its
//! queue pair and its entry without a search:
//!
//! ```text
//! receive   bit 63 | index of the posted receive (32 bits)
//! send      index of the queue pair (30 bits) << 32 | number of the send-queue entry (32 bits)
//! marker    bit 62 | index of the queue pair << 32 | number of the first entry behind it
//! ```
//!
//! The end of a queue pair: it goes to the error state, and a *marker*, a signalled RDMA WRITE of
//! nothing, is posted behind everything that the device has. When the marker comes back, everything
//! before it was reported or ended unsignalled; what was posted but never given to the device is
//! flushed here. Messages it took from the SRQ are all in the CQ once the device reported "last WQE
//! reached" (IBTA 11.6.3.4) and the CQ was found empty after that; for devices that do not report it
//! (rxe of Linux 6.1) [`LAST_RECEIVE_WAIT`] stands in.
#![allow(unsafe_code)] // posting: calls into the provider's functions

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lunar_platform::{
    CmError, CmEvent, CompletionStatus, Hca, HcaAttributes, PostError, QpHandle, QpParameters,
    ReceiveRequest, SendOperation, SendRequest, WorkCompletion, WorkRequestId,
};
use lunar_verbs_ibv_sys as sys;
use rustix::event::{Timespec, epoll};

use crate::completion_queue::{CompletionQueue, RawCompletion};
use crate::connection::{CmId, Event, EventChannel, IbvConnection, QpWishes, Reads};
use crate::device::{Device, DeviceEvent, DeviceState, Mail};
use crate::error::{OpenError, checked_pointer};
use crate::host_link::{HostLink, Imports};
use crate::keys::{Keys, Reading};
use crate::memory::IbvMemory;
use crate::send_queue::SendQueue;
use crate::slots::{QpNumbers, Slots};

/// Bytes sent inline where the device can: an SRP_RSP with sense data.
const INLINE_BYTES: u32 = 128;
/// Descriptors are looked at in one of so many polls for events: the data path makes no system call
/// of ours. A power of two.
const EVENT_POLLS: u32 = 64;
/// Work requests given to the device with one doorbell.
const DOORBELL_MAX: usize = 64;
/// How long after its last send a failed queue pair may still hand over messages.
const LAST_RECEIVE_WAIT: Duration = Duration::from_millis(100);
/// Completions taken while arming that wait for the next poll.
const HELD_MAX: usize = 16;

const RECEIVE: u64 = 1 << 63;
const MARKER: u64 = 1 << 62;
/// Queue pairs that a `wr_id` can tell apart.
const QUEUE_PAIRS_MAX: u32 = 1 << 30;

/// A queue pair that no handle leads to, for messages that came in on one that is gone: their receive
/// buffers still go back to their owner.
const NOBODY: QpHandle = QpHandle { index: u32::MAX, generation: u32::MAX };

/// Where a connection is. Only moves down this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// REP sent: takes messages, may not send.
    Accepted,
    /// Ready to send.
    Live,
    /// Everything is flushed.
    Error,
}

/// How far the end of a queue pair is. Only moves down this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    No,
    /// The marker is at the device; its number.
    Marked(u32),
    /// The marker came back at this time.
    Returned(Instant),
    /// `Drained` was reported.
    Drained,
}

#[derive(Debug)]
struct QueuePair {
    id: CmId,
    qp: *mut sys::ibv_qp,
    number: u32,
    inline_bytes: u32,
    handle: QpHandle,
    state: State,
    ending: Ending,
    /// The device reported the last receive.
    last_receive: bool,
    /// Which empty CQ must be seen before it is drained; `None` while receives may come.
    empty_awaited: Option<u64>,
    /// What work that is flushed here ends with.
    flush_status: CompletionStatus,
    sends: SendQueue,
}

/// One poll group's share of a device.
#[derive(Debug)]
pub struct IbvHca {
    // Declared in the order they must go: queue pairs, then what they stand on.
    queue_pairs: Slots<QueuePair>,
    srq: Srq,
    cq: CompletionQueue,
    channel: EventChannel,
    device: Arc<DeviceState>,
    attributes: HcaAttributes,
    keys: Arc<Keys>,
    numbers: QpNumbers,
    /// The poster's ids of the receives in the SRQ, and the places that are free.
    receive_ids: Box<[WorkRequestId]>,
    receives_free: Vec<u32>,
    mail: Arc<Mail>,
    epoll: OwnedFd,
    events: VecDeque<CmEvent>,
    /// Queue pairs in the error state that are not drained.
    ending: Vec<u32>,
    /// Completions taken while arming.
    held: [RawCompletion; HELD_MAX],
    held_count: usize,
    work: Box<[sys::ibv_send_wr; DOORBELL_MAX]>,
    entries: Box<[sys::ibv_sge; DOORBELL_MAX]>,
    event_polls: u32,
    /// Times the CQ was found empty.
    empties: u64,
    dead: bool,
}

// SAFETY: the pointers inside `work` and `entries` are written before each use, those of queue pairs
// belong to `id`s, which may move; everything else is Send.
unsafe impl Send for IbvHca {}

/// An SRQ. Dropping it takes it from the device.
#[derive(Debug)]
struct Srq {
    device: Arc<DeviceState>,
    srq: *mut sys::ibv_srq,
}

impl Drop for Srq {
    fn drop(&mut self) {
        // SAFETY: made by us; its queue pairs are gone.
        unsafe { (self.device.library.ibv_destroy_srq)(self.srq) };
    }
}

/// The pieces of hardware of one poll group.
#[derive(Debug)]
pub struct GroupPieces {
    /// Its share of the HCA.
    pub hca: IbvHca,
    /// Its DMA context.
    pub dma: HostLink,
    /// Its registrar of memory.
    pub memory: IbvMemory,
}

impl Device {
    /// Makes what poll group number `index` needs: a share of this device for initiators, and a way into the
    /// host's memory over `dma_device`, which may be the same. `wanted` is brought down to what the device has.
    ///
    /// # Errors
    /// When the device gives no queue of these sizes.
    pub fn group(
        &self,
        index: u16,
        wanted: HcaAttributes,
        dma_device: &Device,
    ) -> Result<GroupPieces, OpenError> {
        let keys = Arc::new(Keys::default());
        let imports = Arc::new(Imports::default());
        let (device, dma_device) = (&self.0, &dma_device.0);
        Ok(GroupPieces {
            hca: IbvHca::new(device, index, wanted, Arc::clone(&keys))?,
            dma: HostLink::new(dma_device, index, Arc::clone(&keys), Arc::clone(&imports))?,
            memory: IbvMemory {
                device: Arc::clone(device),
                dma_device: Arc::clone(dma_device),
                keys,
                imports,
            },
        })
    }
}

const CHANNEL_TOKEN: u64 = 0;
const DEVICE_TOKEN: u64 = 1;
const MAIL_TOKEN: u64 = 2;
const COMPLETION_TOKEN: u64 = 3;

impl IbvHca {
    fn new(
        device: &Arc<DeviceState>,
        index: u16,
        wanted: HcaAttributes,
        keys: Arc<Keys>,
    ) -> Result<Self, OpenError> {
        let attributes = limit(wanted, &device.attributes, device.message_bytes_max);
        let cq = CompletionQueue::new(device, attributes.completion_queue_depth, index.into())?;
        let receives = attributes.shared_receive_queue_depth;
        let mut wishes = sys::ibv_srq_init_attr {
            srq_context: ptr::null_mut(),
            attr: sys::ibv_srq_attr { max_wr: receives, max_sge: 1, srq_limit: 0 },
        };
        // SAFETY: the protection domain is alive.
        let srq =
            checked_pointer(unsafe { (device.library.ibv_create_srq)(device.pd, &raw mut wishes) })
                .map_err(
                    device.failed(format!("a shared receive queue of {receives} (--slots)")),
                )?;
        let srq = Srq { device: Arc::clone(device), srq };
        let channel = EventChannel::new(device.library)
            .map_err(device.failed("a channel of the connection manager (modprobe rdma_ucm)"))?;
        let mail = device.subscribe().map_err(device.failed("an event line"))?;
        let epoll = watch(&[
            (channel.fd(), CHANNEL_TOKEN),
            (device.events_fd(), DEVICE_TOKEN),
            (mail.fd(), MAIL_TOKEN),
            (cq.fd(), COMPLETION_TOKEN),
        ])
        .map_err(device.failed("an epoll instance"))?;
        let count = attributes.queue_pairs_max;
        tracing::debug!(
            group = index,
            extended_polling = cq.is_extended(),
            ?attributes,
            "a poll group's share of the device is made"
        );
        Ok(Self {
            queue_pairs: Slots::new(count),
            srq,
            cq,
            channel,
            device: Arc::clone(device),
            attributes,
            keys,
            numbers: QpNumbers::new(count),
            receive_ids: vec![WorkRequestId(0); receives as usize].into_boxed_slice(),
            receives_free: (0..receives).rev().collect(),
            mail,
            epoll,
            // Each queue pair has at most three events waiting; the device's come on top.
            events: VecDeque::with_capacity(3 * count as usize + 64),
            ending: Vec::with_capacity(count as usize),
            held: [RawCompletion::EMPTY; HELD_MAX],
            held_count: 0,
            work: Box::new([sys::ibv_send_wr::EMPTY; DOORBELL_MAX]),
            entries: Box::new([sys::ibv_sge::default(); DOORBELL_MAX]),
            event_polls: 0,
            empties: 0,
            dead: false,
        })
    }

    // ---- connections and events ----

    fn accept_id(
        &mut self,
        id: CmId,
        reads: Reads,
        parameters: QpParameters,
        private_data: &[u8],
    ) -> Result<QpHandle, CmError> {
        if self.dead || self.queue_pairs.is_full() || id.verbs() != self.device.context {
            id.reject(&[]);
            return Err(CmError::NoResources);
        }
        if parameters.send_queue_depth > self.attributes.send_queue_depth_max
            || parameters.rdma_reads > self.attributes.rdma_reads_max
        {
            id.reject(&[]);
            return Err(CmError::Invalid);
        }
        let reads = Reads::agree(parameters.rdma_reads, reads, &self.device.attributes);
        if parameters.rdma_reads > 0 && reads.initiator == 0 {
            // Every RDMA READ would wait for ever.
            tracing::warn!("a peer answers no RDMA READ (responder resources 0); it was rejected");
            id.reject(&[]);
            return Err(CmError::Invalid);
        }
        let wishes = QpWishes {
            send_cq: self.cq.raw(),
            receive_cq: self.cq.raw(),
            srq: self.srq.srq,
            // The marker has a place of its own.
            send_depth: parameters.send_queue_depth + 1,
            receive_depth: 0,
            inline_bytes: INLINE_BYTES,
        };
        if let Err(error) = self.channel.adopt(&id) {
            tracing::warn!(%error, "a connection request was over before it was answered");
            id.reject(&[]);
            return Err(CmError::Gone);
        }
        let made = match id.create_qp(&self.device, &wishes) {
            Ok(made) => made,
            Err(error) => {
                tracing::warn!(%error, device = %self.device.name, "no queue pair could be made");
                id.reject(&[]);
                return Err(CmError::NoResources);
            }
        };
        if let Err(error) = id.accept(private_data, reads) {
            tracing::warn!(%error, "a connection request could not be accepted");
            id.reject(&[]);
            return Err(CmError::Gone);
        }
        let claimed = self.queue_pairs.claim(|handle, sequence| {
            // The channel is read by this thread alone, so no event of the id was seen yet.
            id.set_context(handle.index as usize);
            Ok::<_, CmError>(QueuePair {
                id,
                qp: made.qp,
                number: made.number,
                inline_bytes: made.inline_bytes,
                handle,
                state: State::Accepted,
                ending: Ending::No,
                last_receive: false,
                empty_awaited: None,
                flush_status: CompletionStatus::Flushed,
                sends: SendQueue::new(parameters.send_queue_depth, sequence),
            })
        });
        let handle = claimed.unwrap_or(Err(CmError::NoResources))?;
        self.numbers.insert(made.number, handle.index);
        Ok(handle)
    }

    /// Looks at the descriptors: a system call, and more where something happened.
    fn look_at_events(&mut self) {
        let mut ready = [epoll::Event { flags: epoll::EventFlags::empty(), data: token(0) }; 4];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let count = epoll::wait(&self.epoll, &mut ready[..], Some(&now)).unwrap_or(0);
        for ready in ready.iter().take(count) {
            match ready.data.u64() {
                CHANNEL_TOKEN => {
                    while let Some(event) = self.channel.next() {
                        self.on_cm(event);
                    }
                }
                DEVICE_TOKEN => self.device.pump_events(),
                _ => {}
            }
        }
        self.look_at_mail();
    }

    fn look_at_mail(&mut self) {
        if !self.mail.waiting.load(std::sync::atomic::Ordering::Acquire) {
            return;
        }
        for event in self.mail.take() {
            match event {
                DeviceEvent::PortDown => self.events.push_back(CmEvent::PortDown),
                DeviceEvent::PortUp => self.events.push_back(CmEvent::PortUp),
                DeviceEvent::Fatal => self.die(),
                DeviceEvent::QpFatal(number) => {
                    if let Some(qp) = self.numbered(number)
                        && qp.state != State::Error
                    {
                        let handle = qp.handle;
                        self.events.push_back(CmEvent::QpFatal(handle));
                    }
                }
                DeviceEvent::Established(number) => {
                    if let Some(qp) = self.numbered(number) {
                        qp.id.notify_established();
                    }
                }
                DeviceEvent::LastReceive(number) => {
                    if let Some(qp) = self.numbered(number) {
                        qp.last_receive = true;
                    }
                }
            }
        }
    }

    fn numbered(&mut self, number: u32) -> Option<&mut QueuePair> {
        let index = self.numbers.get(number)?;
        self.queue_pairs.at_mut(index)
    }

    fn on_cm(&mut self, event: Event) {
        if event.kind == sys::RDMA_CM_EVENT_DEVICE_REMOVAL {
            return self.die();
        }
        let index = u32::try_from(event.context).unwrap_or(u32::MAX);
        // An event of an id that was destroyed since is not for its slot's next life.
        let Some(qp) = self.queue_pairs.at_mut(index).filter(|qp| qp.id.raw() == event.id) else {
            return;
        };
        match event.kind {
            sys::RDMA_CM_EVENT_ESTABLISHED if qp.state == State::Accepted => {
                qp.state = State::Live;
                let handle = qp.handle;
                self.events.push_back(CmEvent::Established(handle));
            }
            sys::RDMA_CM_EVENT_DISCONNECTED
            | sys::RDMA_CM_EVENT_REJECTED
            | sys::RDMA_CM_EVENT_UNREACHABLE
            | sys::RDMA_CM_EVENT_CONNECT_ERROR
            | sys::RDMA_CM_EVENT_ADDR_CHANGE => self.close(index),
            _ => {}
        }
    }

    /// Ends a connection: error state, DREQ or DREP, marker. Idempotent.
    fn close(&mut self, index: u32) {
        let Some(qp) = self.queue_pairs.at_mut(index) else { return };
        if qp.state == State::Error {
            return;
        }
        qp.state = State::Error;
        qp.id.disconnect();
        let mark = qp.sends.taken();
        let mut marker = sys::ibv_send_wr {
            wr_id: MARKER | u64::from(index) << 32 | u64::from(mark),
            opcode: sys::IBV_WR_RDMA_WRITE,
            send_flags: sys::IBV_SEND_SIGNALED,
            ..sys::ibv_send_wr::EMPTY
        };
        let mut refused = ptr::null_mut();
        // SAFETY: the queue pair is alive; the marker names no memory.
        let posted = unsafe { sys::ibv_post_send(qp.qp, &raw mut marker, &raw mut refused) };
        if posted == 0 {
            qp.ending = Ending::Marked(mark);
        } else {
            // Only a device that does nothing any more refuses what it has a place for.
            tracing::warn!(
                errno = posted,
                "the device takes no marker; its work counts as flushed"
            );
            qp.sends.abandon();
            qp.ending = Ending::Returned(Instant::now());
        }
        let handle = qp.handle;
        self.ending.push(index);
        self.events.push_back(CmEvent::Disconnected(handle));
    }

    /// The device is gone.
    fn die(&mut self) {
        if std::mem::replace(&mut self.dead, true) {
            return;
        }
        self.events.push_back(CmEvent::DeviceFatal);
        for index in 0..self.queue_pairs.capacity() {
            let Some(qp) = self.queue_pairs.at_mut(index) else { continue };
            qp.sends.abandon();
            qp.flush_status = CompletionStatus::Fatal;
            qp.last_receive = true;
            if qp.state != State::Error {
                qp.state = State::Error;
                let handle = qp.handle;
                self.ending.push(index);
                self.events.push_back(CmEvent::Disconnected(handle));
            }
            if qp.ending != Ending::Drained {
                qp.ending = Ending::Returned(Instant::now());
            }
        }
    }

    /// The next queue pair of which every work request was reported.
    fn next_drained(&mut self) -> Option<CmEvent> {
        if self.ending.is_empty() {
            return None;
        }
        let (queue_pairs, empties) = (&mut self.queue_pairs, self.empties);
        let place = self.ending.iter().position(|index| {
            queue_pairs.at_mut(*index).is_some_and(|qp| qp.is_drained(empties))
        })?;
        let index = self.ending.swap_remove(place);
        let qp = self.queue_pairs.at_mut(index)?;
        qp.ending = Ending::Drained;
        Some(CmEvent::Drained(qp.handle))
    }

    // ---- data path ----

    /// What `raw` is for the owner; `None` for what is ours alone.
    #[inline]
    fn translate(&mut self, raw: &RawCompletion) -> Option<WorkCompletion> {
        let low = raw.wr_id as u32;
        if raw.wr_id & RECEIVE != 0 {
            let id = *self.receive_ids.get(low as usize)?;
            // One place each: the stack cannot grow beyond its capacity.
            self.receives_free.push(low);
            let qp = match self.numbers.get(raw.qp_number) {
                Some(index) => self.queue_pairs.at_mut(index),
                None => None,
            };
            let handle = match qp {
                Some(qp) => {
                    if qp.state == State::Accepted && raw.status == CompletionStatus::Success {
                        // IBTA 12.9.7: the message stands for the RTU.
                        qp.state = State::Live;
                        self.events.push_back(CmEvent::Established(qp.handle));
                    }
                    qp.handle
                }
                None => NOBODY,
            };
            return Some(WorkCompletion { id, status: raw.status, qp: handle, length: raw.length });
        }
        let index = (raw.wr_id >> 32) as u32 & (QUEUE_PAIRS_MAX - 1);
        let qp = self.queue_pairs.at_mut(index)?;
        if raw.wr_id & MARKER != 0 {
            if qp.ending == Ending::Marked(low) {
                qp.sends.release_taken();
                qp.ending = Ending::Returned(Instant::now());
            }
            return None;
        }
        let id = qp.sends.complete(low)?;
        Some(WorkCompletion { id, status: raw.status, qp: qp.handle, length: 0 })
    }

    /// Flushes what was posted on queue pairs in the error state and never given to the device.
    fn flush(&mut self, out: &mut [WorkCompletion]) -> usize {
        let mut filled = 0;
        for place in 0..self.ending.len() {
            let Some(qp) = self.ending.get(place).and_then(|index| self.queue_pairs.at_mut(*index))
            else {
                continue;
            };
            // Not before the device reported what it has.
            if !matches!(qp.ending, Ending::Returned(_)) {
                continue;
            }
            while let Some(out) = out.get_mut(filled)
                && let Some(id) = qp.sends.flush()
            {
                let (status, qp) = (qp.flush_status, qp.handle);
                *out = WorkCompletion { id, status, qp, length: 0 };
                filled += 1;
            }
        }
        filled
    }
}

impl QueuePair {
    /// Whether every work request was reported. Says from when on an empty CQ proves it.
    fn is_drained(&mut self, empties: u64) -> bool {
        let Ending::Returned(since) = self.ending else { return false };
        if !self.sends.is_empty() {
            return false;
        }
        let awaited = match self.empty_awaited {
            Some(awaited) => awaited,
            None if self.last_receive || since.elapsed() >= LAST_RECEIVE_WAIT => {
                *self.empty_awaited.insert(empties + 1)
            }
            None => return false,
        };
        empties >= awaited
    }

    /// Gives the device what waits, at most [`DOORBELL_MAX`] with one doorbell.
    #[inline]
    fn ring(
        &mut self,
        reading: &Reading<'_>,
        work: &mut [sys::ibv_send_wr; DOORBELL_MAX],
        entries: &mut [sys::ibv_sge; DOORBELL_MAX],
    ) -> Rung {
        let mut count = 0;
        while count < DOORBELL_MAX
            && let Some((sequence, request)) = self.sends.waiting(count as u32)
        {
            let known = reading.get(request.local.key);
            // Key 0 is no region's: the device reports a local protection error.
            entries[count] = sys::ibv_sge {
                addr: request.local.address,
                length: request.local.length,
                lkey: known.map_or(0, |known| known.lkey),
            };
            let (opcode, remote) = match request.operation {
                SendOperation::Send => (sys::IBV_WR_SEND, Default::default()),
                SendOperation::RdmaWrite(remote) => (sys::IBV_WR_RDMA_WRITE, remote),
                SendOperation::RdmaRead(remote) => (sys::IBV_WR_RDMA_READ, remote),
            };
            let (address, length) = (request.local.address, u64::from(request.local.length));
            let inline = request.local.length <= self.inline_bytes
                && opcode != sys::IBV_WR_RDMA_READ
                && length != 0
                && known.is_some_and(|known| known.holds(address, length));
            let signaled = if request.signaled { sys::IBV_SEND_SIGNALED } else { 0 };
            work[count] = sys::ibv_send_wr {
                wr_id: u64::from(self.handle.index) << 32 | u64::from(sequence),
                sg_list: &raw mut entries[count],
                num_sge: i32::from(length != 0),
                opcode,
                send_flags: signaled | if inline { sys::IBV_SEND_INLINE } else { 0 },
                remote_addr: remote.address,
                rkey: remote.key,
                ..sys::ibv_send_wr::EMPTY
            };
            count += 1;
        }
        if count == 0 {
            return Rung::Nothing;
        }
        let first = work.as_mut_ptr();
        for place in 1..count {
            // SAFETY: inside the array.
            work[place - 1].next = unsafe { first.add(place) };
        }
        let mut refused = ptr::null_mut();
        // SAFETY: the queue pair is alive and the chain lies in the arrays. The memory it names is
        // kept by its owner until the completions (`Hca`'s contract); what the CPU copies is
        // registered, and stays mapped while `reading` lives.
        let result = unsafe { sys::ibv_post_send(self.qp, first, &raw mut refused) };
        if result == 0 {
            self.sends.take(count as u32);
            return if count == DOORBELL_MAX { Rung::More } else { Rung::Nothing };
        }
        // Everything before the refused one was taken.
        let taken = (refused as usize).wrapping_sub(first as usize) / size_of::<sys::ibv_send_wr>();
        self.sends.take(if taken < count { taken as u32 } else { 0 });
        Rung::Refused(result)
    }
}

/// What a doorbell did.
enum Rung {
    /// Nothing waits any more.
    Nothing,
    /// More may wait.
    More,
    /// The device refused the rest; an errno.
    Refused(i32),
}

impl Drop for IbvHca {
    fn drop(&mut self) {
        for index in 0..self.queue_pairs.capacity() {
            if let Some(qp) = self.queue_pairs.at_mut(index) {
                qp.id.disconnect();
            }
        }
    }
}

impl Hca for IbvHca {
    type Connection = IbvConnection;

    fn attributes(&self) -> HcaAttributes {
        self.attributes
    }

    fn accept(
        &mut self,
        connection: IbvConnection,
        parameters: QpParameters,
        private_data: &[u8],
    ) -> Result<QpHandle, CmError> {
        let reads = connection.reads;
        let id = connection.into_id().ok_or(CmError::Gone)?;
        self.accept_id(id, reads, parameters, private_data)
    }

    fn reject(&mut self, connection: IbvConnection, private_data: &[u8]) {
        connection.reject(private_data);
    }

    fn disconnect(&mut self, qp: QpHandle) {
        if self.queue_pairs.get_mut(qp).is_some() {
            self.close(qp.index);
        }
    }

    fn destroy(&mut self, qp: QpHandle) {
        let Some(found) = self.queue_pairs.get_mut(qp) else { return };
        let (number, next) = (found.number, found.sends.next());
        self.numbers.remove(number);
        self.ending.retain(|index| *index != qp.index);
        // Events that wait for it are about nothing any more.
        self.events.retain(|event| concerns(event) != Some(qp));
        drop(self.queue_pairs.release(qp.index, next));
    }

    fn poll_cm(&mut self) -> Option<CmEvent> {
        if self.event_polls.is_multiple_of(EVENT_POLLS) {
            self.look_at_events();
        } else {
            self.look_at_mail();
        }
        self.event_polls = self.event_polls.wrapping_add(1);
        self.events.pop_front().or_else(|| self.next_drained())
    }

    fn post_receive(&mut self, request: ReceiveRequest) -> Result<(), PostError> {
        if request.local.length > self.attributes.message_bytes_max {
            return Err(PostError::Invalid);
        }
        let Some(place) = self.receives_free.pop() else { return Err(PostError::Full) };
        let reading = self.keys.read();
        let mut entry = sys::ibv_sge {
            addr: request.local.address,
            length: request.local.length,
            lkey: reading.get(request.local.key).map_or(0, |known| known.lkey),
        };
        let mut work = sys::ibv_recv_wr {
            wr_id: RECEIVE | u64::from(place),
            next: ptr::null_mut(),
            sg_list: &raw mut entry,
            num_sge: 1,
        };
        let mut refused = ptr::null_mut();
        // SAFETY: the SRQ is alive; the owner keeps the buffer until its completion.
        let result =
            unsafe { sys::ibv_post_srq_recv(self.srq.srq, &raw mut work, &raw mut refused) };
        if result == 0 {
            self.receive_ids[place as usize] = request.id;
            Ok(())
        } else {
            self.receives_free.push(place);
            Err(if result == libc::ENOMEM { PostError::Full } else { PostError::Invalid })
        }
    }

    fn post_send(&mut self, qp: QpHandle, chain: &[SendRequest]) -> Result<(), PostError> {
        let limit = self.attributes.message_bytes_max;
        let qp = self.queue_pairs.get_mut(qp).ok_or(PostError::NotConnected)?;
        let takes = match qp.state {
            State::Accepted => false,
            State::Live => true,
            State::Error => qp.ending != Ending::Drained,
        };
        if !takes {
            return Err(PostError::NotConnected);
        }
        if chain.iter().any(|request| request.local.length > limit) {
            return Err(PostError::Invalid);
        }
        qp.sends.post(chain)
    }

    fn ring(&mut self, qp: QpHandle) {
        let Some(found) = self.queue_pairs.get_mut(qp) else { return };
        if found.state != State::Live {
            return;
        }
        let reading = self.keys.read();
        let refused = loop {
            match found.ring(&reading, &mut self.work, &mut self.entries) {
                Rung::More => {}
                Rung::Nothing => return,
                Rung::Refused(errno) => break errno,
            }
        };
        drop(reading);
        // Nothing may be left out of the middle of a chain: the connection ends, and what the device
        // did not take is flushed.
        tracing::warn!(errno = refused, "the device refused a work request; its connection ends");
        self.events.push_back(CmEvent::QpFatal(qp));
        self.close(qp.index);
    }

    fn poll(&mut self, completions: &mut [WorkCompletion]) -> usize {
        let mut filled = 0;
        // What came while arming is older than what is in the CQ.
        while self.held_count > 0 && filled < completions.len() {
            let first = self.held[0];
            self.held.copy_within(1..self.held_count, 0);
            self.held_count -= 1;
            if let Some(completion) = self.translate(&first) {
                completions[filled] = completion;
                filled += 1;
            }
        }
        let mut raw = [RawCompletion::EMPTY; 32];
        while filled < completions.len() && !self.dead {
            let wanted = (completions.len() - filled).min(raw.len());
            let count = self.cq.poll(&mut raw[..wanted]);
            for raw in &raw[..count] {
                if let Some(completion) = self.translate(raw) {
                    completions[filled] = completion;
                    filled += 1;
                }
            }
            if count < wanted {
                self.empties += 1;
                break;
            }
        }
        if self.dead {
            self.empties += 1;
        }
        if !self.ending.is_empty() {
            filled += self.flush(&mut completions[filled..]);
        }
        filled
    }

    fn arm(&mut self) -> bool {
        self.look_at_events();
        if let Some(event) = self.next_drained() {
            self.events.push_back(event);
        }
        if !self.events.is_empty() || self.held_count > 0 {
            return false;
        }
        let flushable =
            |qp: &QueuePair| matches!(qp.ending, Ending::Returned(_)) && !qp.sends.is_empty();
        let queue_pairs = &mut self.queue_pairs;
        if self
            .ending
            .iter()
            .any(|index| queue_pairs.at_mut(*index).is_some_and(|qp| flushable(qp)))
        {
            return false;
        }
        if self.dead {
            return true;
        }
        if let Err(error) = self.cq.arm() {
            tracing::warn!(%error, "the completion queue cannot be armed");
            return false;
        }
        // What came before the CQ was armed has no event.
        self.held_count = self.cq.poll(&mut self.held);
        self.event_polls = 0;
        self.held_count == 0
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }
}

/// The queue pair that an event is about.
fn concerns(event: &CmEvent) -> Option<QpHandle> {
    match event {
        CmEvent::Established(qp)
        | CmEvent::Disconnected(qp)
        | CmEvent::QpFatal(qp)
        | CmEvent::Drained(qp) => Some(*qp),
        CmEvent::PortDown | CmEvent::PortUp | CmEvent::DeviceFatal => None,
    }
}

/// What a device with these attributes can give of what is wanted.
fn limit(
    wanted: HcaAttributes,
    device: &sys::ibv_device_attr,
    message_bytes_max: u32,
) -> HcaAttributes {
    let has = |count: i32| u32::try_from(count).unwrap_or(0);
    HcaAttributes {
        queue_pairs_max: wanted.queue_pairs_max.min(has(device.max_qp)).min(QUEUE_PAIRS_MAX),
        // One place is the marker's.
        send_queue_depth_max: wanted
            .send_queue_depth_max
            .min(has(device.max_qp_wr).saturating_sub(1)),
        shared_receive_queue_depth: wanted.shared_receive_queue_depth.min(has(device.max_srq_wr)),
        completion_queue_depth: wanted.completion_queue_depth.min(has(device.max_cqe)),
        rdma_reads_max: wanted.rdma_reads_max.min(has(device.max_qp_init_rd_atom)).min(255),
        message_bytes_max: wanted.message_bytes_max.min(message_bytes_max),
    }
}

pub(crate) fn token(value: u64) -> epoll::EventData {
    epoll::EventData::new_u64(value)
}

/// An epoll instance over some descriptors.
pub(crate) fn watch(descriptors: &[(BorrowedFd<'_>, u64)]) -> std::io::Result<OwnedFd> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (descriptor, data) in descriptors {
        epoll::add(&epoll, descriptor, token(*data), epoll::EventFlags::IN)?;
    }
    Ok(epoll)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_gets_no_more_than_the_device_has() {
        let wanted = HcaAttributes {
            queue_pairs_max: 256,
            send_queue_depth_max: 4096,
            shared_receive_queue_depth: 4096,
            completion_queue_depth: 1 << 20,
            rdma_reads_max: 16,
            message_bytes_max: 16 << 20,
        };
        // SAFETY: integers only.
        let mut device: sys::ibv_device_attr = unsafe { std::mem::zeroed() };
        (device.max_qp, device.max_qp_wr, device.max_srq_wr) = (1 << 20, 4096, 1024);
        (device.max_cqe, device.max_qp_init_rd_atom) = (32767, 128);
        let given = limit(wanted, &device, 8 << 20);
        assert_eq!(
            given,
            HcaAttributes {
                send_queue_depth_max: 4095,
                shared_receive_queue_depth: 1024,
                completion_queue_depth: 32767,
                message_bytes_max: 8 << 20,
                ..wanted
            }
        );
        device.max_qp_wr = -1;
        assert_eq!(limit(wanted, &device, 1).send_queue_depth_max, 0);
    }
}
