//! What the target tells an initiator unasked: SRP_CRED_REQ when no response will carry a credit,
//! SRP_AER_REQ after a change of configuration, SRP_T_LOGOUT before it closes a channel.
//!
//! The first two go out in a slot, as a response does, and end like one. A logout has no slot, because
//! it must be possible when all are in use: every channel's send queue has a place for it, and what it
//! says depends on nothing but the reason.

use lunar_platform::{Hca, Platform, Region, SendOperation, SendRequest, Sge};
use lunar_scsi::lun;
use lunar_scsi::task_set::TaskAttribute;
use lunar_scsi::unit_attention::UnitAttention;
use lunar_srp::channel::ChannelState;
use lunar_srp::iu::{self, EventRequest, SolicitedNotification, logout_reason};

use crate::channel::MANAGEMENT_RESERVE;
use crate::fifo::NONE;
use crate::focus::Focus;
use crate::kit::{RESPONSE_STRIDE, channel_wr_id};
use crate::message::CloseReason;
use crate::nexus::NexusLun;
use crate::poll_group::PollGroup;
use crate::task::{Arrival, Batch, State};

/// The reasons that the target gives; each has its IU behind the slots' response buffers.
pub(crate) const LOGOUT_REASONS: [u32; 4] = [
    logout_reason::NOT_SPECIFIED,
    logout_reason::INVALID_IU_TYPE,
    logout_reason::MULTI_CHANNEL_ACTION,
    logout_reason::INVALID_IU_LENGTH,
];

/// How long an SRP_T_LOGOUT may take before its channel is closed without it, in nanoseconds. A peer
/// that is gone acknowledges nothing, and its next login waits meanwhile.
const LOGOUT_WAIT_NS: u64 = 10_000_000;

/// Why an initiator is told that its channel ends; `None` where it knows, or cannot be told.
fn told_reason(reason: CloseReason) -> Option<u32> {
    match reason {
        CloseReason::Administrative | CloseReason::CreditOverrun => {
            Some(logout_reason::NOT_SPECIFIED)
        }
        CloseReason::MalformedIu => Some(logout_reason::INVALID_IU_TYPE),
        CloseReason::IuLength => Some(logout_reason::INVALID_IU_LENGTH),
        CloseReason::Replaced => Some(logout_reason::MULTI_CHANNEL_ACTION),
        CloseReason::PeerGone
        | CloseReason::Logout
        | CloseReason::WorkRequestFailed
        | CloseReason::Stuck => None,
    }
}

/// Writes the logouts behind the response buffers of `slots` slots.
pub(crate) fn encode_logouts(region: &mut impl Region, slots: u32) {
    for (place, reason) in (slots as usize..).zip(LOGOUT_REASONS) {
        let out = region.bytes_mut(place * RESPONSE_STRIDE, RESPONSE_STRIDE);
        // Tag 0: nothing answers a logout. Its 16 bytes fit.
        let _ = iu::encode_target_logout(0, reason, out);
    }
}

impl<P: Platform> PollGroup<P> {
    /// Ends the connection of a channel that was just closed, after an SRP_T_LOGOUT where the initiator
    /// is to be told why (SRP 6.6). `was_live`: it could send until now.
    pub(crate) fn part_from(&mut self, channel: u32, reason: CloseReason, was_live: bool) {
        let announced =
            was_live && told_reason(reason).is_some_and(|reason| self.log_out(channel, reason));
        if !announced {
            self.kit.hca.disconnect(self.channels[channel as usize].qp);
        }
    }

    /// Posts the logout. `false` when the queue pair is gone.
    fn log_out(&mut self, channel: u32, reason: u32) -> bool {
        let Some(place) = LOGOUT_REASONS.iter().position(|known| *known == reason) else {
            return false;
        };
        let place = (self.limits.slots as usize + place) * RESPONSE_STRIDE;
        let region = &self.kit.response_region;
        let local = Sge {
            address: region.base() + place as u64,
            length: iu::LOGOUT_BYTES,
            key: region.key(),
        };
        let id = channel_wr_id(channel);
        let request = SendRequest { id, operation: SendOperation::Send, local, signaled: true };
        let entry = &mut self.channels[channel as usize];
        if !self.kit.post(entry, &[request]) {
            return false;
        }
        entry.logout_until = Some(self.kit.now.plus(LOGOUT_WAIT_NS));
        self.logouts += 1;
        true
    }

    /// The logout of `channel` left, or there is no use in waiting for that any more.
    pub(crate) fn end_logout(&mut self, channel: u32) {
        let entry = &mut self.channels[channel as usize];
        if entry.logout_until.take().is_some() {
            self.logouts -= 1;
            self.kit.hca.disconnect(entry.qp);
        }
    }

    /// As [`Self::end_logout`] for a channel that is closed once more, unless that is for a reason of
    /// which the initiator is told.
    pub(crate) fn hurry_logout(&mut self, channel: u32, reason: CloseReason) {
        if told_reason(reason).is_none() {
            self.end_logout(channel);
        }
    }

    /// Closes the channels whose logout did not leave in time.
    pub(crate) fn expire_logouts(&mut self) {
        for channel in 0..u32::try_from(self.channels.len()).unwrap_or(0) {
            let until = self.channels[channel as usize].logout_until;
            if until.is_some_and(|until| self.kit.now >= until) {
                self.end_logout(channel);
            }
        }
    }

    /// Sends the events of [`NexusLun::tell`], each on any channel of its nexus that has a slot to
    /// spare. Those that find none wait for the next call.
    pub(crate) fn send_events(&mut self) {
        self.events_due = false;
        for nexus in 0..self.nexuses.len() {
            while self.nexuses[nexus].in_use {
                let place = self.nexuses[nexus].luns.iter().position(|lun| !lun.events.is_empty());
                let Some(place) = place else { break };
                let Some(channel) = self.channel_to_spare(nexus) else {
                    self.events_due = true;
                    break;
                };
                self.send_event(nexus, place, channel);
            }
        }
    }

    /// A channel of `nexus` that has a slot beside those kept for task management.
    fn channel_to_spare(&self, nexus: usize) -> Option<u32> {
        let found = self.channels.iter().position(|channel| {
            channel.is_in_use()
                && channel.nexus as usize == nexus
                && channel.state == ChannelState::Live
                && channel.slots < channel.slots_max - MANAGEMENT_RESERVE
        });
        found.and_then(|place| u32::try_from(place).ok())
    }

    /// Takes the first event of the LUN at `place` and sends it in a slot of `channel`. The answer,
    /// SRP_AER_RSP, uses no credit and says nothing.
    fn send_event(&mut self, nexus: usize, place: usize, channel: u32) {
        let entry = &mut self.nexuses[nexus];
        let Some(lun) = entry.luns.get_mut(place) else { return };
        let Some(sense) = lun.events.take() else { return };
        let number = lun.number;
        // The promises to all channels add up to at most the number of slots.
        let Some((id, task)) = self.tasks.claim() else { return };
        task.renew(Arrival {
            tag: id.to_token(),
            attribute: TaskAttribute::Simple,
            notification: SolicitedNotification::default(),
            channel,
            nexus: nexus as u32,
            lun: NONE,
            unit: NONE,
            receive: NONE,
            iu_bytes: 0,
            cdb_bytes: 0,
            started: self.kit.now,
        });
        entry.tasks += 1;
        self.channels[channel as usize].slots += 1;
        let mut encoded = [0; iu::SENSE_BYTES_MAX];
        let length = sense.encode(false, &mut encoded);
        let event = EventRequest {
            tag: id.to_token(),
            request_limit_delta: 0,
            lun: lun::encode(number),
            sense: encoded.get(..length).unwrap_or(&[]),
            solicited: false,
        };
        let mut focus = self.focus(id.index);
        let posted = focus.announce(|out| iu::encode_event_request(&event, out));
        if !posted {
            let after = focus.over();
            self.finish(id.index, channel, after);
            self.close_channel(channel, CloseReason::WorkRequestFailed);
        }
    }
}

impl<P: Platform, const TRACED: bool> Focus<'_, P, TRACED> {
    /// An ended task that nobody answers owed the last credit in play, so no response will carry it:
    /// an SRP_CRED_REQ does (SRP 6.10), in the task's own slot and place of the send queue. Gives
    /// whether it was posted; then the slot stays claimed until its SEND completed.
    pub(crate) fn request_credit(&mut self) -> bool {
        if !self.channel.is_open() || !self.kit.hca.takes_requests() {
            return false;
        }
        let Some(delta) = self.channel.credit.credit_request_delta() else { return false };
        let tag = self.task.tag;
        self.announce(|out| iu::encode_credit_request(tag, delta, false, out))
    }

    /// Sends what `encode` writes into the slot's response buffer, which ends the task when it left.
    /// `false` when nothing was posted.
    fn announce(&mut self, encode: impl FnOnce(&mut [u8]) -> Option<usize>) -> bool {
        let place = self.id.index as usize * RESPONSE_STRIDE;
        let out = self.kit.response_region.bytes_mut(place, RESPONSE_STRIDE);
        let length = encode(out).and_then(|length| u32::try_from(length).ok());
        let Some(length) = length else { return false };
        let request = self.response_request(length);
        if !self.kit.post(self.channel, &[request]) {
            self.task.state = State::Aborting;
            return false;
        }
        self.task.batch = Batch::Response(0);
        self.task.state = State::Sending;
        true
    }
}

impl NexusLun {
    /// Establishes a unit attention condition that is also told as an asynchronous event, by
    /// [`PollGroup::send_events`].
    pub(crate) fn tell(&mut self, attention: UnitAttention) {
        self.attentions.establish(attention);
        self.events.establish(attention);
    }
}
