//! What the steps of a task work with: the group's share of the HCA, its memory, its caches and its
//! ring, and the lists of what waits for them. One to a poll group.
//!
//! What a task names (its channel, nexus, unit) is not here but in the group's tables, so that a step
//! can hold both at once; see [`Focus`](crate::focus::Focus).

use std::collections::VecDeque;
use std::sync::Arc;

use lunar_backend::OperationData;
use lunar_backend::ring::RingBackend;
use lunar_dma::sgv::{Buffer, Placement, SgvCache};
use lunar_dma::slots::SlotId;
use lunar_platform::{
    Hca, Nanoseconds, Platform, QpHandle, ReceiveRequest, Region, SendRequest, Sge, WorkRequestId,
};
use lunar_srp::descriptor::DataBuffer;
use lunar_srp::iu::CDB_OFFSET;

use crate::channel::Channel;
use crate::configuration::Configuration;
use crate::fifo::{Fifo, Links};
use crate::statistics::GroupCounters;
use crate::task::{Task, Wake};
use crate::trace::{Point, Record, Trace};

/// Work requests in one chain: RDMA WRITEs or READs of one batch and a response.
pub(crate) const CHAIN_MAX: usize = 32;

/// Bytes a slot's response buffer takes: the longest SRP_RSP, rounded up to a cache line.
pub(crate) const RESPONSE_STRIDE: usize = lunar_srp::iu::RESPONSE_BYTES_MAX.next_multiple_of(64);

/// See the module.
pub(crate) struct Kit<P: Platform> {
    pub hca: P::Hca,
    pub receive_region: ReceiveBuffers<P::Region>,
    pub response_region: P::Region,
    pub card_region: CardRegion<P::Region>,
    pub card_cache: SgvCache,
    pub host_cache: Option<SgvCache>,
    /// Host memory that CardDram operations of the ring are staged in.
    pub staging_cache: Option<SgvCache>,
    /// Which life of the host arena `host_cache` is about.
    pub host_epoch: u32,
    pub ring: Option<RingBackend<P>>,
    /// The host announced that its memory goes; buffers come from the card meanwhile.
    pub releasing: bool,
    /// The configuration in force.
    pub configuration: Arc<Configuration>,
    pub links: Links,
    /// Tasks that wait for a buffer, by placement.
    pub need_buffer: [Fifo; 2],
    pub need_backend: Fifo,
    /// Ends whose waiters were not looked at yet.
    pub wakes: VecDeque<Wake>,
    /// A task that somebody waits for ended since they were looked at.
    pub ends_seen: bool,
    /// Queue pairs that something was posted on in this tick.
    pub doorbells: Vec<QpHandle>,
    /// The chain that is being made, where it is a list of ranges that moves.
    pub chain: Vec<SendRequest>,
    /// Sense of the forwarded command whose response is being made.
    pub forwarded_sense: [u8; lunar_srp::iu::SENSE_BYTES_MAX],
    pub counters: GroupCounters,
    /// The tick's time.
    pub now: Nanoseconds,
    pub trace: Option<Box<Trace>>,
}

impl<P: Platform> Kit<P> {
    /// Posts `requests` on `channel`; the doorbell follows at the end of the tick. `false` when the
    /// queue pair is gone, and nothing was queued.
    #[inline(always)]
    pub(crate) fn post(&mut self, channel: &mut Channel, requests: &[SendRequest]) -> bool {
        self.counters.work_requests += requests.len() as u64;
        if self.hca.post_send(channel.qp, requests).is_err() {
            return false;
        }
        if !channel.doorbell {
            channel.doorbell = true;
            self.doorbells.push(channel.qp);
        }
        true
    }

    /// [`Self::post`] for the chain that was made.
    pub(crate) fn post_chain(&mut self, channel: &mut Channel) -> bool {
        let chain = std::mem::take(&mut self.chain);
        let posted = self.post(channel, &chain);
        self.chain = chain;
        posted
    }

    /// Gives receive buffer `index` back to the SRQ.
    #[inline(always)]
    pub(crate) fn repost(&mut self, index: u32) {
        let request = self.receive_region.request(index);
        // The SRQ has a place for every receive buffer, so this cannot be refused by a sound
        // provider; a refused buffer is lost capacity, never a wrong answer.
        let _ = self.hca.post_receive(request);
    }

    #[inline]
    pub(crate) fn record(&mut self, tag: u64, point: Point) {
        if let Some(trace) = self.trace.as_mut() {
            trace.push(Record { at: self.now, tag, point });
        }
    }
}

/// Receive buffers and their links.
pub(crate) struct ReceiveBuffers<R> {
    region: R,
    stride: usize,
    /// What lies in the buffers whose messages wait.
    pub messages: Box<[Message]>,
    pub links: Links,
}

/// A message in its receive buffer.
#[derive(Clone, Copy)]
pub(crate) struct Message {
    pub bytes: u32,
    pub since: Nanoseconds,
}

impl<R: Region> ReceiveBuffers<R> {
    /// `count` buffers of `stride` bytes in `region`.
    pub(crate) fn new(region: R, stride: usize, count: u32) -> Self {
        let message = Message { bytes: 0, since: Nanoseconds(0) };
        Self {
            region,
            stride,
            messages: vec![message; count as usize].into_boxed_slice(),
            links: Links::new(count as usize),
        }
    }

    /// The first `bytes` of receive buffer `index`.
    #[inline]
    pub(crate) fn iu(&self, index: u32, bytes: u32) -> &[u8] {
        self.region.bytes(index as usize * self.stride, bytes as usize)
    }

    /// The whole of receive buffer `index`.
    pub(crate) fn buffer_mut(&mut self, index: u32) -> &mut [u8] {
        self.region.bytes_mut(index as usize * self.stride, self.stride)
    }

    /// The CDB of `task`; a long one is read where the initiator's message lies.
    pub(crate) fn cdb<'a>(&'a self, task: &'a Task) -> &'a [u8] {
        let length = usize::from(task.cdb_bytes);
        task.cdb.get(..length).unwrap_or_else(|| {
            let offset = task.receive as usize * self.stride + usize::from(CDB_OFFSET);
            self.region.bytes(offset, length)
        })
    }

    /// The immediate data of `task`, where the initiator's message lies: until the task gives its receive
    /// buffer back, the data may stay there.
    pub(crate) fn immediate_data(&self, task: &Task) -> Option<OperationData> {
        let DataBuffer::Immediate { offset, length } = task.data_out else { return None };
        let offset = u64::from(task.receive) * self.stride as u64 + u64::from(offset);
        Some(OperationData {
            placement: Placement::CardDram,
            key: self.region.key(),
            address: self.region.base() + offset,
            offset,
            bytes: length,
        })
    }

    /// The first `bytes` of the immediate data of `task`; `None` if it has none or less.
    pub(crate) fn immediate_bytes(&self, task: &Task, bytes: u32) -> Option<&[u8]> {
        let DataBuffer::Immediate { offset, length } = task.data_out else { return None };
        let offset = task.receive as usize * self.stride + offset as usize;
        (bytes <= length).then(|| self.region.bytes(offset, bytes as usize))
    }

    /// The receive work request of buffer `index`.
    #[inline]
    pub(crate) fn request(&self, index: u32) -> ReceiveRequest {
        ReceiveRequest {
            id: wr_id(Kind::Receive, SlotId { index, generation: 0 }),
            local: Sge {
                address: self.region.base() + u64::from(index) * self.stride as u64,
                length: self.stride as u32,
                key: self.region.key(),
            },
        }
    }
}

/// SGV memory on the card, for parameter data and parameter lists.
pub(crate) struct CardRegion<R>(pub(crate) R);

impl<R: Region> CardRegion<R> {
    /// What `buffer` holds in its first `bytes`.
    pub(crate) fn contents(&self, buffer: &Buffer, bytes: u32) -> &[u8] {
        let offset = usize::try_from(buffer.offset()).unwrap_or(usize::MAX);
        self.0.bytes(offset, bytes as usize)
    }

    /// `bytes` from `offset` of the arena.
    pub(crate) fn bytes_at(&mut self, offset: u64, bytes: u32) -> &mut [u8] {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        self.0.bytes_mut(offset, bytes as usize)
    }
}

/// What a work request was, in the high bits of its id: the opcode of a failed completion is not to
/// be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A receive; the index is the receive buffer.
    Receive = 0,
    /// The last work request of a task's batch; the index is the slot.
    Tail = 1,
    /// Another one of the batch: reported only when it failed.
    Body = 2,
    /// An SRP_T_LOGOUT; the index is the channel.
    Logout = 3,
}

/// Bits of a work request's id that hold an index.
const INDEX_BITS: u32 = 28;
const INDEX_MASK: u64 = (1 << INDEX_BITS) - 1;

/// wr_id = generation (32 bits) | kind (4 bits) | index (28 bits).
#[inline]
pub(crate) fn wr_id(kind: Kind, slot: SlotId) -> WorkRequestId {
    WorkRequestId(slot.to_token() | (kind as u64) << INDEX_BITS)
}

/// The id of the logout of `channel`.
pub(crate) fn channel_wr_id(channel: u32) -> WorkRequestId {
    wr_id(Kind::Logout, SlotId { index: channel, generation: 0 })
}

/// The slot, or what else the index is of, in an id that [`wr_id`] made.
#[inline]
pub(crate) fn wr_slot(id: WorkRequestId) -> SlotId {
    SlotId { index: (id.0 & INDEX_MASK) as u32, generation: (id.0 >> 32) as u32 }
}

impl Kind {
    /// Whether [`wr_id`] made `id` with this kind.
    #[inline]
    pub(crate) fn is_of(self, id: WorkRequestId) -> bool {
        (id.0 >> INDEX_BITS) & 0xf == self as u64
    }
}
