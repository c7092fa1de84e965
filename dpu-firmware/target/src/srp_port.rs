//! The SRP side of a task: receives, data phases by RDMA, and responses.
//!
//! Room on a channel's send queue is a sum (see `Channel::send_queue_depth`): the response of every
//! slot has its place from the moment the slot is claimed, so an accepted command can always be
//! answered; only data phases wait.

use lunar_platform::{
    CompletionStatus, Platform, Region, RemoteAddress, SendOperation, SendRequest, Sge,
    WorkCompletion, WorkRequestId,
};
use lunar_scsi::lun;
use lunar_scsi::sense::Sense;
use lunar_scsi::status::Status;
use lunar_scsi::task_set::TaskAttribute;
use lunar_srp::channel::ChannelEvent;
use lunar_srp::descriptor::DataBuffer;
use lunar_srp::iu::{self, IuError, Request, Residual, Response, SolicitedNotification};

use crate::channel::MANAGEMENT_RESERVE;
use crate::fifo::NONE;
use crate::histogram::Histogram;
use crate::message::CloseReason;
use crate::mutant::{self, Mutant};
use crate::poll_group::{
    CHAIN_MAX, Kind, Message, PollGroup, RESPONSE_STRIDE, data_request, wr_id,
};
use crate::statistics::{OperationKind, size_class};
use crate::task::{Batch, Cursor, Membership, State, Step};
use crate::trace::Point;

/// Where the CDB starts in an SRP_CMD (SRP 6.8); additional CDB bytes follow its 16.
const CDB_OFFSET: u16 = 32;

/// Messages beyond its credits that a channel may have waiting: SRP_I_LOGOUT, SRP_CRED_RSP and
/// SRP_AER_RSP use none.
const RECEIVES_SPARE: u32 = 4;

/// What to do with a message that was looked at.
enum Taken {
    /// It became a task, which keeps the receive buffer.
    Kept,
    /// It is dealt with: the receive buffer can be reposted.
    Finished,
    /// There is no slot for it now.
    Waits,
}

impl<P: Platform> PollGroup<P> {
    /// A receive completed: the next message of its channel.
    pub(crate) fn on_receive(&mut self, completion: &WorkCompletion) {
        let index = (completion.id.0 & 0x0fff_ffff) as u32;
        let channel = completion.qp.index;
        let open = self
            .channels
            .get(channel as usize)
            .is_some_and(|entry| entry.qp == completion.qp && entry.is_open());
        if completion.status != CompletionStatus::Success {
            if open {
                self.close_channel(channel, CloseReason::WorkRequestFailed);
            }
            return self.repost(index);
        }
        if !open || index as usize >= self.receive_region.messages.len() {
            return self.repost(index);
        }
        self.record(0, Point::Received);
        self.receive_region.messages[index as usize] =
            Message { bytes: completion.length, since: self.now };
        let entry = &mut self.channels[channel as usize];
        if entry.receives.len() > entry.credit.available() + RECEIVES_SPARE {
            // More messages than credits, while earlier ones wait for slots: the buffers are all
            // channels'.
            self.counters.credit_overruns += 1;
            self.close_channel(channel, CloseReason::CreditOverrun);
            return self.repost(index);
        }
        // A message of a live queue pair implies that the RTU was lost or is late (IBTA 12.9.7).
        entry.state = entry.state.on(ChannelEvent::Established);
        if entry.receives.is_empty() {
            match self.take_message(channel, index) {
                Taken::Kept => return,
                Taken::Finished => return self.repost(index),
                Taken::Waits => {}
            }
        }
        self.counters.receives_waited += 1;
        self.channels[channel as usize].receives.push(&mut self.receive_region.links, index);
    }

    /// A slot of `channel` is free again: the messages that waited for it go on, oldest first.
    pub(crate) fn wake_receives(&mut self, channel: u32) {
        while let Some(index) = self.channels[channel as usize].receives.head() {
            let open = self.channels[channel as usize].is_open();
            let taken = if open { self.take_message(channel, index) } else { Taken::Finished };
            match taken {
                Taken::Waits => return,
                Taken::Kept | Taken::Finished => {
                    // Closing the channel has reposted what waited, this one included.
                    let waited = self.channels[channel as usize]
                        .receives
                        .remove(&mut self.receive_region.links, index);
                    if waited && matches!(taken, Taken::Finished) {
                        self.repost(index);
                    }
                }
            }
        }
    }

    /// Parses the message in receive buffer `index` and starts what it asks for.
    fn take_message(&mut self, channel: u32, index: u32) -> Taken {
        let bytes = self.receive_region.messages[index as usize].bytes;
        if bytes > self.channels[channel as usize].it_iu_bytes_max {
            return self.malformed(channel);
        }
        match iu::parse(self.receive_region.iu(index, bytes)) {
            Ok(Request::Command(command)) => {
                let iu::Command { tag, lun, attribute, solicited, cdb, data_out, data_in } =
                    command;
                let cdb_bytes = u16::try_from(cdb.len()).unwrap_or(0);
                let started = self.start_task(
                    channel,
                    index,
                    MANAGEMENT_RESERVE,
                    (tag, lun, attribute, solicited),
                );
                let slot = match started {
                    Ok(slot) => slot,
                    Err(taken) => return taken,
                };
                let task = self.tasks.at_mut(slot);
                task.cdb_bytes = cdb_bytes;
                task.cdb_offset = CDB_OFFSET;
                task.iu_bytes = bytes;
                task.data_in = data_in;
                task.data_out = data_out;
                self.trace_task(slot, Point::Claimed);
                self.admit(slot);
                Taken::Kept
            }
            Ok(Request::TaskManagement(management)) => {
                let iu::TaskManagement { tag, lun, function, task_tag, solicited } = management;
                let about = (tag, lun, TaskAttribute::Simple, solicited);
                match self.start_task(channel, index, 0, about) {
                    Ok(slot) => self.start_management(slot, function, task_tag),
                    Err(taken) => return taken,
                }
                Taken::Kept
            }
            // A command whose descriptors contradict themselves: it has a tag and can be answered.
            Err(IuError::Command { tag, lun, solicited, .. }) => {
                let about = (tag, lun, TaskAttribute::Simple, solicited);
                let slot = match self.start_task(channel, index, MANAGEMENT_RESERVE, about) {
                    Ok(slot) => slot,
                    Err(taken) => return taken,
                };
                let task = self.tasks.at_mut(slot);
                task.unit = NONE;
                task.status = Status::CheckCondition;
                task.sense = Some(Sense::INVALID_INFORMATION_UNIT);
                task.state = State::NeedSendRoom;
                self.advance(slot);
                Taken::Kept
            }
            Ok(Request::Logout { .. }) => {
                self.close_channel(channel, CloseReason::Logout);
                Taken::Finished
            }
            Ok(Request::CredResponse { .. } | Request::AerResponse { .. }) => Taken::Finished,
            Err(IuError::Malformed(_)) => self.malformed(channel),
        }
    }

    /// The channel sent what no initiator sends.
    #[cold]
    fn malformed(&mut self, channel: u32) -> Taken {
        self.counters.malformed_ius += 1;
        self.close_channel(channel, CloseReason::MalformedIu);
        Taken::Finished
    }

    /// Claims a slot for the request in receive buffer `index`, leaving `reserve` slots of its channel:
    /// one is kept for task management, whatever the commands do. Gives the slot's index, or what
    /// becomes of the message when there is none.
    #[inline(always)] // Two of its three callers are rare.
    fn start_task(
        &mut self,
        channel: u32,
        index: u32,
        reserve: u32,
        (tag, lun, attribute, solicited): (u64, [u8; 8], TaskAttribute, SolicitedNotification),
    ) -> Result<u32, Taken> {
        let entry = &mut self.channels[channel as usize];
        if entry.slots >= entry.slots_max - reserve {
            return Err(Taken::Waits);
        }
        if entry.credit.take().is_err() {
            self.counters.credit_overruns += 1;
            self.close_channel(channel, CloseReason::CreditOverrun);
            return Err(Taken::Finished);
        }
        let Some(id) = self.tasks.claim() else {
            // The promises to all channels add up to at most the number of slots.
            debug_assert!(false, "slots were promised twice");
            self.close_channel(channel, CloseReason::WorkRequestFailed);
            return Err(Taken::Finished);
        };
        entry.slots += 1;
        let nexus_index = entry.nexus;
        let nexus = &mut self.nexuses[nexus_index as usize];
        nexus.tasks += 1;
        let place = lun::decode(lun).and_then(|number| nexus.find(number));
        let unit =
            place.and_then(|place| nexus.luns.get(place as usize)).map_or(NONE, |lun| lun.unit);
        let task = self.tasks.at_mut(id.index);
        task.renew();
        task.channel = channel;
        task.nexus = nexus_index;
        task.lun = place.unwrap_or(NONE);
        task.unit = unit;
        task.tag = tag;
        task.attribute = attribute;
        task.notification = solicited;
        task.receive = index;
        task.started = self.receive_region.messages[index as usize].since;
        Ok(id.index)
    }

    /// Past the gate and into the task set (SAM-6 8): the task runs now or is held back.
    #[inline(always)]
    pub(crate) fn admit(&mut self, index: u32) {
        let task = self.tasks.at_mut(index);
        if let Some(unit) = self.units.get_mut(task.unit) {
            if unit.is_closed() {
                unit.held.push(&mut self.links, index);
                self.mark_state(index, State::Blocked);
                return;
            }
            unit.active += 1;
        }
        let lun = self
            .nexuses
            .get_mut(task.nexus as usize)
            .and_then(|nexus| nexus.luns.get_mut(task.lun as usize));
        if let Some(lun) = lun {
            if !lun.set.admit(task.attribute) {
                task.membership = Membership::Dormant;
                lun.dormant.push(&mut self.links, index);
                self.mark_state(index, State::Blocked);
                return;
            }
            task.membership = Membership::Enabled;
        }
        self.advance(index);
    }

    /// In `NeedReadRoom`: posts as many RDMA READs as there is room for.
    pub(crate) fn fetch_data_out(&mut self, index: u32) -> Step {
        let id = self.tasks.id_at(index);
        let task = self.tasks.at_mut(index);
        let channel = &mut self.channels[task.channel as usize];
        if !channel.is_open() {
            return self.lose(index);
        }
        if task.holds_lost_host_memory(self.host_epoch) {
            return task.check(Sense::COMMAND_ABORTED);
        }
        let room = channel.read_room.min(channel.data_room).min(CHAIN_MAX as u32);
        if room == 0 {
            self.counters.send_waited += 1;
            channel.need_read.push(&mut self.links, index);
            return Step::Wait;
        }
        let Some(buffer) = task.buffer.as_ref() else { return Step::Over };
        let iu = self.receive_region.iu(task.receive, task.iu_bytes);
        let local = Sge { address: buffer.address(), length: 0, key: buffer.key() };
        self.chain.clear();
        task.cursor = chain_data(
            &mut self.chain,
            &task.data_out,
            iu,
            task.cursor,
            task.transfer_bytes,
            room,
            local,
            wr_id(Kind::Body, id.index, id.generation),
            SendOperation::RdmaRead,
        );
        let count = self.chain.len() as u32;
        if let Some(last) = self.chain.last_mut() {
            last.signaled = true;
            last.id = wr_id(Kind::Tail, id.index, id.generation);
        }
        if count == 0 {
            // The descriptors hold less than they promised: `total_bytes` was clipped to their sum,
            // so only a peer that rewrites a posted message could get here.
            task.status = Status::CheckCondition;
            task.sense = Some(Sense::INTERNAL_TARGET_FAILURE);
            return Step::Enter(State::NeedSendRoom);
        }
        task.batch = Batch::Reads(count);
        channel.read_room -= count;
        channel.data_room -= count;
        let channel = task.channel;
        self.trace_task(index, Point::ReadsPosted { work_requests: count });
        if !self.post_chain(channel) {
            return self.refused(index, channel, count, count);
        }
        Step::Enter(State::Fetching)
    }

    /// In `NeedSendRoom`: RDMA WRITEs chained to the response, the receive reposted first.
    pub(crate) fn push_response(&mut self, index: u32) -> Step {
        let id = self.tasks.id_at(index);
        let task = self.tasks.at_mut(index);
        let channel_index = task.channel;
        let channel = &mut self.channels[channel_index as usize];
        if !channel.is_open() || (task.silent && mutant::is(Mutant::LateWriteAfterAbort)) {
            return self.lose(index);
        }
        debug_assert!(task.batch == Batch::None, "one batch at a time");
        if task.holds_lost_host_memory(self.host_epoch) && task.moves_data_in() {
            task.status = Status::CheckCondition;
            task.sense = Some(Sense::COMMAND_ABORTED);
            task.transfer_bytes = 0;
        }
        self.chain.clear();
        let mut writes = 0;
        if task.moves_data_in() && task.cursor.bytes < task.transfer_bytes {
            let room = channel.data_room.min(CHAIN_MAX as u32);
            if room == 0 {
                self.counters.send_waited += 1;
                channel.need_send.push(&mut self.links, index);
                return Step::Wait;
            }
            let Some(buffer) = task.buffer.as_ref() else { return Step::Over };
            let iu = self.receive_region.iu(task.receive, task.iu_bytes);
            let local = Sge { address: buffer.address(), length: 0, key: buffer.key() };
            task.cursor = chain_data(
                &mut self.chain,
                &task.data_in,
                iu,
                task.cursor,
                task.transfer_bytes,
                room,
                local,
                wr_id(Kind::Body, id.index, id.generation),
                SendOperation::RdmaWrite,
            );
            writes = self.chain.len() as u32;
            channel.data_room -= writes;
            if task.cursor.bytes < task.transfer_bytes && writes != 0 {
                // More than one batch: this one reports its end, and the next follows then.
                if let Some(last) = self.chain.last_mut() {
                    last.signaled = true;
                    last.id = wr_id(Kind::Tail, id.index, id.generation);
                }
                task.batch = Batch::Writes(writes);
                if !self.post_chain(channel_index) {
                    return self.refused(index, channel_index, writes, 0);
                }
                // Its tail brings the task back here.
                return Step::Wait;
            }
        }
        let receive = std::mem::replace(&mut task.receive, NONE);
        task.batch = Batch::Response(writes);
        let response = self.encode_response(index);
        self.chain.push(SendRequest {
            id: wr_id(Kind::Tail, id.index, id.generation),
            operation: SendOperation::Send,
            local: response,
            signaled: true,
        });
        if receive != NONE {
            self.repost(receive);
            self.trace_task(index, Point::Reposted);
        }
        self.trace_task(index, Point::ResponsePosted { writes });
        if !self.post_chain(channel_index) {
            return self.refused(index, channel_index, writes, 0);
        }
        self.answered(index);
        Step::Enter(State::Sending)
    }

    /// Encodes the SRP_RSP into the slot's response buffer.
    fn encode_response(&mut self, index: u32) -> Sge {
        let task = self.tasks.at_mut(index);
        let delta = self.channels[task.channel as usize].credit.response_delta();
        let mut encoded;
        let sense = match (task.status, task.sense.as_ref()) {
            (Status::CheckCondition, Some(code)) => {
                encoded = [0; iu::SENSE_BYTES_MAX];
                let length = code.encode(false, &mut encoded);
                encoded.get(..length).unwrap_or(&[])
            }
            (_, _) if task.sense_bytes != 0 => {
                let kept = &self.forwarded_sense[..];
                kept.get(..usize::from(task.sense_bytes)).unwrap_or(&[])
            }
            _ => &[],
        };
        let success = task.status == Status::Good;
        let is_data_in = task.is_data_in();
        let residual = |is_used: bool, buffer: &DataBuffer| {
            let offered = buffer.total_bytes();
            // A command that failed moved nothing, but one whose buffer is too small says by how much.
            let wanted = match task.wanted_bytes {
                wanted if is_used && (success || wanted > offered) => wanted,
                _ => 0,
            };
            Residual::between(wanted, offered)
        };
        let data_out_residual = residual(!is_data_in, &task.data_out);
        let data_in_residual = residual(is_data_in, &task.data_in);
        let response = Response {
            tag: task.tag,
            request_limit_delta: delta,
            status: task.status as u8,
            data_out_residual,
            data_in_residual,
            response_code: task.management.map(|management| management.response_code),
            sense,
            solicited: task.notification.wanted(success),
        };
        let offset = index as usize * RESPONSE_STRIDE;
        let length = {
            let out = self.response_region.bytes_mut(offset, RESPONSE_STRIDE);
            iu::encode_response(&response, out).unwrap_or(0)
        };
        Sge {
            address: self.response_region.base() + offset as u64,
            length: u32::try_from(length).unwrap_or(0),
            key: self.response_region.key(),
        }
    }

    /// The response is posted: the task leaves its task set, and is counted.
    fn answered(&mut self, index: u32) {
        let task = self.tasks.at_mut(index);
        let membership = std::mem::replace(&mut task.membership, Membership::Outside);
        let kind = task.kind();
        let (nexus, lun, unit, attribute) = (task.nexus, task.lun, task.unit, task.attribute);
        let latency = self.now.since(task.started);
        let bytes = if kind == OperationKind::Other { 0 } else { task.transfer_bytes };
        let entry = &mut self.nexuses[nexus as usize];
        if task.management.is_some() {
            entry.counters.task_managements += 1;
            return;
        }
        let count = |counters: &mut crate::statistics::Counters| {
            counters.commands[kind as usize] += 1;
            counters.bytes[kind as usize] += u64::from(bytes);
            match task.status {
                Status::CheckCondition => counters.check_conditions += 1,
                Status::Busy | Status::TaskSetFull => counters.refused += 1,
                _ => {}
            }
        };
        count(&mut entry.counters);
        let bucket = Histogram::bucket(latency);
        entry.latency[kind as usize].count(bucket);
        if let Some(unit) = self.units.get_mut(unit) {
            count(&mut unit.counters);
            unit.latency[kind as usize][size_class(bytes)].count(bucket);
        }
        self.leave_task_set(nexus, lun, membership, attribute);
    }

    /// The last work request of a task's batch completed, well or not.
    pub(crate) fn on_tail(&mut self, slot: lunar_dma::slots::SlotId, completion: &WorkCompletion) {
        let Some(id) = self.tasks.live(slot.to_token()) else {
            self.counters.stale_completions += 1;
            return;
        };
        let index = id.index;
        let task = self.tasks.at_mut(index);
        let mut state = Some(task.state);
        let batch = std::mem::take(&mut task.batch);
        let channel_index = task.channel;
        let channel = &mut self.channels[channel_index as usize];
        let room = match batch {
            Batch::None => {
                self.counters.stale_completions += 1;
                return;
            }
            Batch::Reads(reads) => {
                channel.read_room += reads;
                reads
            }
            Batch::Writes(writes) | Batch::Response(writes) => writes,
        };
        channel.data_room += room;
        if completion.status != CompletionStatus::Success {
            self.close_channel(channel_index, CloseReason::WorkRequestFailed);
            state = self.tasks.live(id.to_token()).map(|_| self.tasks.at(index).state);
        }
        match state {
            // Closing the channel ended it.
            None => {}
            Some(State::Sending) => self.over(index),
            Some(State::Aborting) if self.tasks.at(index).is_quiet() => self.over(index),
            Some(State::Aborting) => {}
            Some(State::Fetching) => {
                let task = self.tasks.at(index);
                let next = if task.cursor.bytes < task.transfer_bytes {
                    State::NeedReadRoom
                } else {
                    State::NeedBackend
                };
                self.trace_task(index, Point::ReadsDone);
                self.mark_state(index, next);
                self.tasks.at_mut(index).state = next;
                self.advance(index);
            }
            Some(State::NeedSendRoom) => self.advance(index),
            Some(_) => self.counters.stale_completions += 1,
        }
        if room != 0 {
            self.wake_room(channel_index);
        }
    }

    /// A work request other than the last failed: the tail follows.
    pub(crate) fn on_body(&mut self, completion: &WorkCompletion) {
        let channel = completion.qp.index;
        let open = self
            .channels
            .get(channel as usize)
            .is_some_and(|entry| entry.qp == completion.qp && entry.is_open());
        if open && completion.status != CompletionStatus::Success {
            self.close_channel(channel, CloseReason::WorkRequestFailed);
        }
    }

    /// Send-queue room of `channel` came back: data phases that waited for it go on.
    pub(crate) fn wake_room(&mut self, channel: u32) {
        loop {
            let entry = &mut self.channels[channel as usize];
            if entry.data_room == 0 {
                return;
            }
            // Data-in first: its tasks hold buffers and are nearly over.
            let next = match entry.need_send.pop(&mut self.links) {
                Some(index) => Some(index),
                None if entry.read_room != 0 => entry.need_read.pop(&mut self.links),
                None => None,
            };
            let Some(index) = next else { return };
            self.advance(index);
        }
    }

    /// The queue pair refused a chain: it is closing. Nothing of the chain was queued.
    fn refused(&mut self, index: u32, channel: u32, data: u32, reads: u32) -> Step {
        self.tasks.at_mut(index).batch = Batch::None;
        let entry = &mut self.channels[channel as usize];
        entry.data_room += data;
        entry.read_room += reads;
        // Marked first, so that closing the channel leaves it to this function.
        let step = self.lose(index);
        if self.channels[channel as usize].is_open() {
            self.close_channel(channel, CloseReason::WorkRequestFailed);
        }
        step
    }

    /// An ended task that nobody answers owed the last credit in play, so no response will carry it:
    /// an SRP_CRED_REQ does (SRP 6.10), in the task's own slot and place of the send queue. Gives
    /// whether it was posted; then the slot stays claimed until its SEND completed.
    pub(crate) fn request_credit(&mut self, index: u32) -> bool {
        let id = self.tasks.id_at(index);
        let task = self.tasks.at_mut(index);
        let channel = task.channel;
        let entry = &mut self.channels[channel as usize];
        if !entry.is_open() {
            return false;
        }
        let Some(delta) = entry.credit.credit_request_delta() else { return false };
        let offset = index as usize * RESPONSE_STRIDE;
        let out = self.response_region.bytes_mut(offset, RESPONSE_STRIDE);
        let Some(length) = iu::encode_credit_request(task.tag, delta, false, out) else {
            return false;
        };
        task.batch = Batch::Response(0);
        task.state = State::Sending;
        self.chain.clear();
        self.chain.push(SendRequest {
            id: wr_id(Kind::Tail, id.index, id.generation),
            operation: SendOperation::Send,
            local: Sge {
                address: self.response_region.base() + offset as u64,
                length: u32::try_from(length).unwrap_or(0),
                key: self.response_region.key(),
            },
            signaled: true,
        });
        if self.post_chain(channel) {
            return true;
        }
        let task = self.tasks.at_mut(index);
        task.batch = Batch::None;
        task.state = State::Aborting;
        false
    }

    /// The task's channel is closing: it ends without an answer.
    fn lose(&mut self, index: u32) -> Step {
        let task = self.tasks.at_mut(index);
        task.silent = true;
        task.state = State::Aborting;
        if task.is_quiet() { Step::Over } else { Step::Enter(State::Aborting) }
    }

    /// Keeps the sense of a forwarded command until its response is encoded, which follows at once.
    pub(crate) fn keep_forwarded_sense(&mut self, index: u32, outcome: &lunar_backend::Outcome) {
        let Some(ring) = self.ring.as_ref() else { return };
        let sense = ring.sense(outcome.token);
        let length = sense.len().min(self.forwarded_sense.len());
        if let (Some(to), Some(from)) =
            (self.forwarded_sense.get_mut(..length), sense.get(..length))
        {
            to.copy_from_slice(from);
        }
        let task = self.tasks.at_mut(index);
        if task.status != Status::Good {
            task.sense_bytes = u16::try_from(length).unwrap_or(0);
        }
    }
}

/// Appends RDMA requests for what `cursor` leaves of `buffer`, at most `room` of them and at most
/// `transfer_bytes` in all; gives the cursor after them.
#[allow(clippy::too_many_arguments)] // One way for both directions; a struct would only rename them.
#[inline]
fn chain_data(
    chain: &mut Vec<SendRequest>,
    buffer: &DataBuffer,
    iu: &[u8],
    cursor: Cursor,
    transfer_bytes: u32,
    room: u32,
    local: Sge,
    id: WorkRequestId,
    operation: fn(RemoteAddress) -> SendOperation,
) -> Cursor {
    // Nearly every command has one range, which is one request: `total_bytes` bounds the transfer.
    if let (DataBuffer::Direct(descriptor), 0) = (buffer, cursor.descriptors) {
        let remote = RemoteAddress { address: descriptor.address, key: descriptor.key };
        let length = descriptor.length.min(transfer_bytes);
        chain.push(data_request(id, operation(remote), Sge { length, ..local }));
        return Cursor { descriptors: 1, bytes: length };
    }
    chain_list(chain, buffer, iu, cursor, transfer_bytes, room, local, id, operation)
}

/// [`chain_data`] for a list of any length.
#[allow(clippy::too_many_arguments)] // As above.
#[inline(never)]
fn chain_list(
    chain: &mut Vec<SendRequest>,
    buffer: &DataBuffer,
    iu: &[u8],
    mut cursor: Cursor,
    transfer_bytes: u32,
    room: u32,
    local: Sge,
    id: WorkRequestId,
    operation: fn(RemoteAddress) -> SendOperation,
) -> Cursor {
    let mut left = room;
    for descriptor in buffer.descriptors(iu).skip(cursor.descriptors as usize) {
        let rest = transfer_bytes - cursor.bytes;
        if rest == 0 || left == 0 {
            break;
        }
        let length = descriptor.length.min(rest);
        let remote = RemoteAddress { address: descriptor.address, key: descriptor.key };
        chain.push(data_request(
            id,
            operation(remote),
            Sge { address: local.address + u64::from(cursor.bytes), length, key: local.key },
        ));
        cursor.bytes += length;
        cursor.descriptors += 1;
        left -= 1;
    }
    cursor
}
