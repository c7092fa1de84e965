//! A channel: one SRP connection, that is one queue pair, with its credits and send-queue room.

use lunar_platform::{Nanoseconds, QpHandle};
use lunar_srp::channel::{ChannelState, Credit};

use crate::fifo::{Fifo, NONE};

/// Work requests of the data phases (RDMA READ and WRITE) that a channel may have posted at a time,
/// beside one response per slot; less where the HCA's send queues are too short for it.
const DATA_ROOM: u32 = 128;

/// Slots a channel keeps for task management beyond its credits (DESIGN section 4).
pub(crate) const MANAGEMENT_RESERVE: u32 = 1;

/// Places of the send queue for an SRP_T_LOGOUT.
pub(crate) const LOGOUT_PLACE: u32 = 1;

/// A poll group's record of one queue pair; found by the queue pair's index.
pub(crate) struct Channel {
    pub qp: QpHandle,
    pub state: ChannelState,
    /// Index in the group's nexus table.
    pub nexus: u32,
    pub credit: Credit,
    /// Slots held by this channel's tasks; at most `slots_max`.
    pub slots: u32,
    /// Request limit plus [`MANAGEMENT_RESERVE`]. The send queue has this many places for responses.
    pub slots_max: u32,
    /// Places of the send queue.
    pub send_queue_depth: u32,
    /// Places left for data-phase work requests.
    pub data_room: u32,
    /// RDMA READs that may still be posted.
    pub read_room: u32,
    /// Largest IU the initiator may send.
    pub it_iu_bytes_max: u32,
    /// Where the initiator puts immediate data, if it may.
    pub immediate_offset: Option<u16>,
    /// Tasks that wait for `data_room` (data-in).
    pub need_send: Fifo,
    /// Tasks that wait for `read_room` or `data_room` (data-out).
    pub need_read: Fifo,
    /// Messages that wait for a slot, oldest first: receive buffer indexes linked through the
    /// group's receive links. RECV completions can overtake the SEND completion that frees a slot.
    pub receives: Fifo,
    /// An SRP_T_LOGOUT is posted, and the connection ends when it left, or then.
    pub logout_until: Option<Nanoseconds>,
    /// Something was posted since the last doorbell.
    pub doorbell: bool,
    /// The HCA reported every work request of the closed queue pair.
    pub drained: bool,
}

impl Channel {
    /// A place in the table that no queue pair uses.
    pub(crate) fn vacant() -> Self {
        Self {
            qp: QpHandle { index: NONE, generation: 0 },
            state: ChannelState::Disconnected,
            nexus: NONE,
            credit: Credit::new(0),
            slots: 0,
            slots_max: 0,
            send_queue_depth: 0,
            data_room: 0,
            read_room: 0,
            it_iu_bytes_max: 0,
            immediate_offset: None,
            need_send: Fifo::default(),
            need_read: Fifo::default(),
            receives: Fifo::default(),
            logout_until: None,
            doorbell: false,
            drained: false,
        }
    }

    /// Whether a queue pair stands behind this entry.
    pub(crate) fn is_in_use(&self) -> bool {
        self.qp.index != NONE
    }

    /// Whether responses may still be sent.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.state, ChannelState::Connecting | ChannelState::Live)
    }

    /// Whether a data phase waits for room.
    #[inline]
    pub(crate) fn is_room_wanted(&self) -> bool {
        !self.need_send.is_empty() || !self.need_read.is_empty()
    }
}

/// How a channel's send queue is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SendQueueShares {
    /// Credits granted: one response each ...
    pub request_limit: u32,
    /// ... as for task management ([`MANAGEMENT_RESERVE`]), one place for a logout ([`LOGOUT_PLACE`]),
    /// and this many RDMA READs and WRITEs of the data phases.
    pub data_room: u32,
}

impl SendQueueShares {
    /// For a target that grants `request_limit` credits, on an HCA whose send queues hold `depth_max`
    /// work requests. Where that is less than everything wants, a quarter of it is the data phases' and the
    /// credits are as many as the rest has places for. `None` when not one credit is left.
    pub(crate) fn new(request_limit: u32, depth_max: u32) -> Option<Self> {
        if request_limit + MANAGEMENT_RESERVE + LOGOUT_PLACE + DATA_ROOM <= depth_max {
            return Some(Self { request_limit, data_room: DATA_ROOM });
        }
        let data_room = (depth_max / 4).clamp(1, DATA_ROOM);
        let places = depth_max.checked_sub(data_room + MANAGEMENT_RESERVE + LOGOUT_PLACE)?;
        let request_limit = request_limit.min(places);
        (request_limit > 0).then_some(Self { request_limit, data_room })
    }

    /// Places of the send queue.
    pub(crate) fn depth(self) -> u32 {
        self.request_limit + MANAGEMENT_RESERVE + LOGOUT_PLACE + self.data_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_send_queue_has_a_place_for_every_response_and_some_for_data() {
        let shares = |limit, depth| SendQueueShares::new(limit, depth);
        let full = SendQueueShares { request_limit: 128, data_room: DATA_ROOM };
        assert_eq!(shares(128, 4096), Some(full));
        assert_eq!(shares(128, full.depth()), Some(full));
        for limit in [1, 2, 47, 128, 1000] {
            for depth in 4..400 {
                let shares = shares(limit, depth).unwrap();
                assert!(shares.depth() <= depth && shares.data_room > 0, "{limit} {depth}");
                assert!((1..=limit).contains(&shares.request_limit), "{limit} {depth}");
            }
        }
        assert_eq!(shares(128, 64), Some(SendQueueShares { request_limit: 46, data_room: 16 }));
        assert!((0..4).all(|depth| shares(1, depth).is_none()));
    }
}
