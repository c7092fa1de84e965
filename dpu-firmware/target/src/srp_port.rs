//! The SRP side of a task: receives, data phases by RDMA, and responses.
//!
//! Room on a channel's send queue is a sum (see `SendQueueShares`): the response of every
//! slot has its place from the moment the slot is claimed, so an accepted command can always be
//! answered; only data phases wait.

use lunar_dma::slots::SlotId;
use lunar_platform::{
    AnsweredRequest, CompletionStatus, Delivery, Hca, Platform, Region, RemoteAddress,
    SendOperation, SendRequest, Sge, WorkCompletion, WorkRequestId,
};
use lunar_scsi::lun;
use lunar_scsi::sense::Sense;
use lunar_scsi::status::Status;
use lunar_scsi::task_set::TaskAttribute;
use lunar_srp::channel::ChannelEvent;
use lunar_srp::descriptor::{DataBuffer, Descriptor};
use lunar_srp::iu::{self, IuError, Malformed, Request, Residual, Response, SolicitedNotification};

use crate::channel::{Channel, MANAGEMENT_RESERVE};
use crate::fifo::NONE;
use crate::focus::{After, Focus};
use crate::histogram::Histogram;
use crate::kit::{CHAIN_MAX, Kind, Kit, Message, RESPONSE_STRIDE, wr_id};
use crate::message::CloseReason;
use crate::mutant::{self, Mutant};
use crate::nexus::Nexus;
use crate::poll_group::{PollGroup, TaskTable};
use crate::statistics::{OperationKind, size_class};
use crate::task::{Arrival, Batch, Cursor, Direction, State, Step, Task};
use crate::trace::Point;

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
    /// A receive completed in buffer `index`: the next message of its channel.
    #[inline(always)]
    pub(crate) fn on_receive<const TRACED: bool>(
        &mut self,
        index: u32,
        completion: &WorkCompletion,
    ) {
        let mut length = completion.length;
        if P::Hca::SHOWS_IUS && completion.status == CompletionStatus::Success {
            let buffer = self.kit.receive_region.buffer_mut(index);
            match self.kit.hca.deliver(completion, buffer) {
                Delivery::Message(bytes) => length = bytes,
                Delivery::Kept => return,
            }
        }
        let channel = completion.qp.index;
        let entry = self.channels.get_mut(channel as usize);
        let entry = entry.filter(|entry| entry.qp == completion.qp && entry.is_open());
        let (Some(entry), CompletionStatus::Success) = (entry, completion.status) else {
            return self.on_unwanted_receive(index, completion);
        };
        if TRACED {
            self.kit.record(0, Point::Received);
        }
        // A message of a live queue pair implies that the RTU was lost or is late (IBTA 12.9.7).
        entry.state = entry.state.on(ChannelEvent::Established);
        let message = Message { bytes: length, since: self.kit.now };
        if entry.receives.is_empty() {
            match self.take_message::<TRACED>(channel, index, message) {
                Taken::Kept => return,
                Taken::Finished => return self.kit.repost(index),
                Taken::Waits => {}
            }
        }
        self.keep_waiting(channel, index, message);
    }

    /// A receive that failed, or whose channel is closing.
    #[cold]
    fn on_unwanted_receive(&mut self, index: u32, completion: &WorkCompletion) {
        if completion.status != CompletionStatus::Success
            && let Some(channel) = self.channel_of(completion.qp)
        {
            self.close_channel(channel, CloseReason::WorkRequestFailed);
        }
        self.kit.repost(index);
    }

    /// There is no slot for the message now, or earlier ones wait already.
    #[cold]
    fn keep_waiting(&mut self, channel: u32, index: u32, message: Message) {
        let entry = &mut self.channels[channel as usize];
        let kept = self.kit.receive_region.messages.get_mut(index as usize);
        let allowed = entry.receives.len() <= entry.credit.available() + RECEIVES_SPARE;
        let (Some(kept), true) = (kept, allowed) else {
            // More messages than credits, while earlier ones wait for slots: the buffers are all
            // channels'.
            self.kit.counters.credit_overruns += 1;
            self.close_channel(channel, CloseReason::CreditOverrun);
            return self.kit.repost(index);
        };
        *kept = message;
        self.kit.counters.receives_waited += 1;
        entry.receives.push(&mut self.kit.receive_region.links, index);
    }

    /// A slot of `channel` is free again: the messages that waited for it go on, oldest first.
    pub(crate) fn wake_receives(&mut self, channel: u32) {
        while let Some(index) = self.channels[channel as usize].receives.head() {
            let open = self.channels[channel as usize].is_open();
            let message = self.kit.receive_region.messages[index as usize];
            let taken =
                if open { self.take_waiting(channel, index, message) } else { Taken::Finished };
            match taken {
                Taken::Waits => return,
                Taken::Kept | Taken::Finished => {
                    // Closing the channel has reposted what waited, this one included.
                    let waited = self.channels[channel as usize]
                        .receives
                        .remove(&mut self.kit.receive_region.links, index);
                    if waited && matches!(taken, Taken::Finished) {
                        self.kit.repost(index);
                    }
                }
            }
        }
    }

    /// [`Self::take_message`] for one that had to wait.
    #[inline(never)]
    fn take_waiting(&mut self, channel: u32, index: u32, message: Message) -> Taken {
        self.take_message::<true>(channel, index, message)
    }

    /// Parses `message` in receive buffer `index` and starts what it asks for.
    #[inline(always)]
    fn take_message<const TRACED: bool>(
        &mut self,
        channel_index: u32,
        index: u32,
        message: Message,
    ) -> Taken {
        let channel = &mut self.channels[channel_index as usize];
        if message.bytes > channel.it_iu_bytes_max {
            return self.malformed(channel_index, CloseReason::IuLength);
        }
        let iu = self.kit.receive_region.iu(index, message.bytes);
        let Some(head) = iu::command_head(iu) else {
            return self.take_other(channel_index, index, message);
        };
        let (id, task) = match claim_slot(channel, &mut self.tasks, MANAGEMENT_RESERVE) {
            Ok(claimed) => claimed,
            Err(refusal) => return self.no_slot(channel_index, refusal),
        };
        let nexus = &mut self.nexuses[channel.nexus as usize];
        task.renew(Arrival {
            tag: head.tag(),
            attribute: head.attribute(),
            notification: head.solicited(),
            cdb_bytes: head.cdb_bytes(),
            ..arrival(channel_index, channel, nexus, head.lun(), index, message)
        });
        task.cdb = head.cdb();
        let (data_out, data_in) = (&mut task.data_out, &mut task.data_in);
        let sound = head.read_buffers(channel.immediate_offset, data_out, data_in);
        nexus.tasks += 1;
        let unit = self.units.get_mut(task.unit);
        let mut focus = Focus::<P, TRACED> { id, task, channel, nexus, unit, kit: &mut self.kit };
        focus.trace(Point::Claimed);
        let after = if sound { focus.admit() } else { focus.refuse_iu() };
        self.finish(id.index, channel_index, after);
        Taken::Kept
    }

    /// [`Self::take_message`] for everything but commands.
    #[cold]
    fn take_other(&mut self, channel_index: u32, index: u32, message: Message) -> Taken {
        match iu::parse(self.kit.receive_region.iu(index, message.bytes)) {
            Ok(Request::TaskManagement(management)) => {
                let channel = &mut self.channels[channel_index as usize];
                let (id, task) = match claim_slot(channel, &mut self.tasks, 0) {
                    Ok(claimed) => claimed,
                    Err(refusal) => return self.no_slot(channel_index, refusal),
                };
                let nexus = &mut self.nexuses[channel.nexus as usize];
                task.renew(Arrival {
                    tag: management.tag,
                    notification: management.solicited,
                    ..arrival(channel_index, channel, nexus, management.lun, index, message)
                });
                nexus.tasks += 1;
                self.start_management(id.index, management.function, management.task_tag);
                Taken::Kept
            }
            Ok(Request::Logout { .. }) => {
                self.close_channel(channel_index, CloseReason::Logout);
                Taken::Finished
            }
            Ok(Request::CredResponse { .. } | Request::AerResponse { .. }) => Taken::Finished,
            Err(IuError::Malformed(Malformed::TooShort { .. })) => {
                self.malformed(channel_index, CloseReason::IuLength)
            }
            // Commands have a head, so they do not come here.
            Ok(Request::Command(_)) | Err(_) => {
                self.malformed(channel_index, CloseReason::MalformedIu)
            }
        }
    }

    /// The channel sent what no initiator sends.
    #[cold]
    fn malformed(&mut self, channel: u32, reason: CloseReason) -> Taken {
        self.kit.counters.malformed_ius += 1;
        self.close_channel(channel, reason);
        Taken::Finished
    }

    /// What becomes of a message that got no slot.
    #[cold]
    fn no_slot(&mut self, channel: u32, refusal: NoSlot) -> Taken {
        match refusal {
            NoSlot::AllUsed => return Taken::Waits,
            NoSlot::NoCredit => {
                self.kit.counters.credit_overruns += 1;
                self.close_channel(channel, CloseReason::CreditOverrun);
            }
            NoSlot::Promised => {
                // The promises to all channels add up to at most the number of slots.
                debug_assert!(false, "slots were promised twice");
                self.close_channel(channel, CloseReason::WorkRequestFailed);
            }
        }
        Taken::Finished
    }

    /// The last work request of a task's batch completed, well or not.
    #[inline(always)]
    pub(crate) fn on_tail<const TRACED: bool>(
        &mut self,
        slot: SlotId,
        completion: &WorkCompletion,
    ) {
        let Some(id) = self.tasks.live(slot.to_token()) else {
            self.kit.counters.stale_completions += 1;
            return;
        };
        let mut focus = self.focus_as::<TRACED>(id.index);
        let channel = focus.task.channel;
        let room = match std::mem::take(&mut focus.task.batch) {
            Batch::None => {
                self.kit.counters.stale_completions += 1;
                return;
            }
            Batch::Reads(reads) => {
                focus.channel.read_room += reads;
                reads
            }
            Batch::Writes(writes) | Batch::Response(writes) => writes,
        };
        focus.channel.data_room += room;
        let waited_for = room != 0 && focus.channel.is_room_wanted();
        let after = if completion.status == CompletionStatus::Success {
            focus.batch_done()
        } else {
            return self.on_failed_tail(id, channel);
        };
        self.finish(id.index, channel, after);
        if waited_for {
            self.wake_room(channel);
        }
    }

    /// The rest of [`Self::on_tail`] for a work request that failed, and with it its channel.
    #[cold]
    fn on_failed_tail(&mut self, id: SlotId, channel: u32) {
        self.close_channel(channel, CloseReason::WorkRequestFailed);
        // Closing the channel may have ended the task; nobody waits for room on it any more.
        if self.tasks.live(id.to_token()).is_some() {
            let mut focus = self.focus(id.index);
            let after = match focus.task.state {
                State::Sending => focus.over(),
                _ => focus.rare_batch_done(),
            };
            self.finish(id.index, channel, after);
        }
    }

    /// A work request completed that is not a receive nor a task's last.
    #[cold]
    pub(crate) fn on_rare(&mut self, completion: &WorkCompletion) {
        if Kind::Body.is_of(completion.id) {
            self.on_body(completion);
        } else if Kind::Logout.is_of(completion.id) {
            self.on_logout(completion);
        } else {
            // No request of this group has such an id.
            self.kit.counters.stale_completions += 1;
        }
    }

    /// A work request other than the last failed: the tail follows.
    fn on_body(&mut self, completion: &WorkCompletion) {
        let channel = completion.qp.index;
        let open = self
            .channels
            .get(channel as usize)
            .is_some_and(|entry| entry.qp == completion.qp && entry.is_open());
        if open && completion.status != CompletionStatus::Success {
            self.close_channel(channel, CloseReason::WorkRequestFailed);
        }
    }

    /// A logout left, or its channel failed.
    fn on_logout(&mut self, completion: &WorkCompletion) {
        if let Some(channel) = self.channel_of(completion.qp) {
            self.end_logout(channel);
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
            let next = match entry.need_send.pop(&mut self.kit.links) {
                Some(index) => Some(index),
                None if entry.read_room != 0 => entry.need_read.pop(&mut self.kit.links),
                None => None,
            };
            let Some(index) = next else { return };
            self.advance(index);
        }
    }
}

impl<P: Platform, const TRACED: bool> Focus<'_, P, TRACED> {
    /// The task's batch is back, and its channel is closed if that failed.
    #[inline(always)]
    fn batch_done(&mut self) -> After {
        match self.task.state {
            State::Sending => self.over_here(),
            State::Fetching => {
                self.trace(Point::ReadsDone);
                if !self.task.fits && self.task.table_wanted().is_some() {
                    return self.table_done();
                }
                self.enter(if self.task.cursor.bytes < self.task.transfer_bytes {
                    State::NeedReadRoom
                } else {
                    State::NeedBackend
                });
                self.advance_here()
            }
            _ => self.rare_batch_done(),
        }
    }

    /// The RDMA READ of a list of ranges is back.
    #[cold]
    fn table_done(&mut self) -> After {
        if let Step::Enter(state) = self.read_table() {
            self.enter(state);
        }
        self.advance()
    }

    #[inline(never)]
    fn rare_batch_done(&mut self) -> After {
        match self.task.state {
            State::Aborting if self.task.is_quiet() => self.over(),
            State::Aborting => After::Rest,
            State::NeedSendRoom => self.advance(),
            _ => {
                self.kit.counters.stale_completions += 1;
                After::Rest
            }
        }
    }

    /// The rest of the command's IU contradicts itself: it is answered, and gets nowhere near its
    /// logical unit.
    #[cold]
    fn refuse_iu(&mut self) -> After {
        self.task.unit = NONE;
        self.unit = None;
        self.task.check(Sense::INVALID_INFORMATION_UNIT);
        self.task.state = State::NeedSendRoom;
        self.advance()
    }

    /// In `NeedReadRoom`: posts as many RDMA READs as there is room for.
    #[inline(always)]
    pub(crate) fn fetch_data_out(&mut self) -> Step {
        let Self { id, task, channel, kit, .. } = self;
        if !channel.is_open() {
            return self.lose();
        }
        if task.holds_lost_host_memory(kit.host_epoch) {
            return task.check(Sense::COMMAND_ABORTED);
        }
        if channel.read_room == 0 || channel.data_room == 0 {
            kit.counters.send_waited += 1;
            channel.need_read.push(&mut kit.links, id.index);
            return Step::Wait;
        }
        if !task.fits
            && let Some(table) = task.table_wanted()
        {
            return self.fetch_table(table);
        }
        let Some(buffer) = task.buffer.as_ref() else { return Step::Over };
        let local =
            Sge { address: buffer.address(), length: task.transfer_bytes, key: buffer.key() };
        match task.only_range(Direction::Out) {
            Some(range) => {
                task.cursor = Cursor { descriptors: 1, bytes: task.transfer_bytes };
                self.post_read(range, local)
            }
            None => self.fetch_list(local),
        }
    }

    /// Posts the one RDMA READ of `range` into `local`.
    #[inline(always)]
    fn post_read(&mut self, range: Descriptor, local: Sge) -> Step {
        let tail = wr_id(Kind::Tail, self.id);
        let read = SendRequest { signaled: true, ..rdma(tail, Direction::Out, range, local) };
        self.task.batch = Batch::Reads(1);
        self.channel.read_room -= 1;
        self.channel.data_room -= 1;
        self.trace(Point::ReadsPosted { work_requests: 1 });
        if !self.kit.post(self.channel, &[read]) {
            return self.refused(1, 1);
        }
        Step::Enter(State::Fetching)
    }

    /// The rest of [`Self::fetch_data_out`] for several ranges.
    #[inline(never)]
    fn fetch_list(&mut self, local: Sge) -> Step {
        let room = self.channel.read_room.min(self.channel.data_room);
        let count = chain_list(self.kit, self.task, room, local, wr_id(Kind::Body, self.id));
        let Some(last) = self.kit.chain.last_mut() else {
            // The descriptors hold less than they promised: `total_bytes` was clipped to their sum,
            // so only a peer that rewrites a posted message could get here.
            return self.task.check(Sense::INTERNAL_TARGET_FAILURE);
        };
        (last.signaled, last.id) = (true, wr_id(Kind::Tail, self.id));
        self.task.batch = Batch::Reads(count);
        self.channel.read_room -= count;
        self.channel.data_room -= count;
        self.trace(Point::ReadsPosted { work_requests: count });
        if !self.kit.post_chain(self.channel) {
            return self.refused(count, count);
        }
        Step::Enter(State::Fetching)
    }

    /// In `NeedReadRoom`: the list of ranges lies in the initiator's memory and is read first.
    #[cold]
    fn fetch_table(&mut self, table: Descriptor) -> Step {
        let Some(buffer) = self.task.table.as_ref() else { return Step::Over };
        let local = Sge { address: buffer.address(), length: table.length, key: buffer.key() };
        self.post_read(table, local)
    }

    /// In `NeedSendRoom`: RDMA WRITEs chained to the response, the receive reposted first.
    #[inline(always)]
    pub(crate) fn push_response(&mut self) -> Step {
        let Self { id, task, channel, kit, .. } = self;
        if !channel.is_open() || (task.silent && mutant::is(Mutant::LateWriteAfterAbort)) {
            return self.lose();
        }
        debug_assert!(task.batch == Batch::None, "one batch at a time");
        let mut writes = 0;
        let mut only_write = None;
        if task.moves_data_in() {
            if task.holds_lost_host_memory(kit.host_epoch) {
                task.check(Sense::COMMAND_ABORTED);
            } else if task.cursor.bytes < task.transfer_bytes {
                let room = channel.data_room;
                if room == 0 {
                    kit.counters.send_waited += 1;
                    channel.need_send.push(&mut kit.links, id.index);
                    return Step::Wait;
                }
                let Some(buffer) = task.buffer.as_ref() else { return Step::Over };
                let length = task.transfer_bytes;
                let local = Sge { address: buffer.address(), length, key: buffer.key() };
                let body = wr_id(Kind::Body, *id);
                if let Some(range) = task.only_range(Direction::In) {
                    task.cursor = Cursor { descriptors: 1, bytes: length };
                    only_write = Some(rdma(body, Direction::In, range, local));
                    writes = 1;
                } else {
                    writes = chain_list(kit, task, room, local, body);
                }
                channel.data_room -= writes;
                if task.cursor.bytes < task.transfer_bytes && writes != 0 {
                    return self.push_part(writes);
                }
            }
        }
        let receive = std::mem::replace(&mut task.receive, NONE);
        task.batch = Batch::Response(writes);
        let length = self.encode_response();
        if P::Hca::SHOWS_IUS {
            self.show_response(length);
        }
        let response = self.response_request(length);
        if receive != NONE {
            self.kit.repost(receive);
            self.trace(Point::Reposted);
        }
        self.trace(Point::ResponsePosted { writes });
        let posted = match (only_write, writes) {
            (Some(write), _) => self.kit.post(self.channel, &[write, response]),
            (None, 0) => self.kit.post(self.channel, &[response]),
            (None, _) => {
                self.kit.chain.push(response);
                self.kit.post_chain(self.channel)
            }
        };
        if !posted {
            return self.refused(writes, 0);
        }
        self.answered();
        Step::Enter(State::Sending)
    }

    /// More RDMA WRITEs than one batch takes: this one reports its end, and the next follows then.
    #[inline(never)]
    fn push_part(&mut self, writes: u32) -> Step {
        if let Some(last) = self.kit.chain.last_mut() {
            last.signaled = true;
            last.id = wr_id(Kind::Tail, self.id);
        }
        self.task.batch = Batch::Writes(writes);
        if !self.kit.post_chain(self.channel) {
            return self.refused(writes, 0);
        }
        // Its tail brings the task back to `push_response`.
        Step::Wait
    }

    /// The SEND of the first `length` bytes of the slot's response buffer.
    #[inline(always)]
    pub(crate) fn response_request(&self, length: u32) -> SendRequest {
        let region = &self.kit.response_region;
        let place = self.id.index as usize * RESPONSE_STRIDE;
        SendRequest {
            id: wr_id(Kind::Tail, self.id),
            operation: SendOperation::Send,
            local: Sge { address: region.base() + place as u64, length, key: region.key() },
            signaled: true,
        }
    }

    /// Shows the provider the response of `length` bytes.
    fn show_response(&mut self, length: u32) {
        let task = &*self.task;
        let place = self.id.index as usize * RESPONSE_STRIDE;
        let iu = self.kit.response_region.bytes_mut(place, length as usize);
        let request = AnsweredRequest {
            tag: task.tag,
            operation_code: task.cdb.first().copied().filter(|_| task.cdb_bytes > 0).unwrap_or(0),
            offered_bytes: task.data_in.total_bytes().max(task.data_out.total_bytes()),
        };
        self.kit.hca.prepare_answer(self.channel.qp, request, iu);
    }

    /// Encodes the SRP_RSP into the slot's response buffer. Gives its length.
    #[inline(always)]
    fn encode_response(&mut self) -> u32 {
        let task = &*self.task;
        let success = task.status == Status::Good;
        let request_limit_delta = self.channel.credit.response_delta();
        let solicited = task.notification.wanted(success);
        let place = self.id.index as usize * RESPONSE_STRIDE;
        // GOOD, and exactly what was wanted and offered was moved: nearly every response.
        let length = if success && task.fits {
            let out = self.kit.response_region.bytes_mut(place, RESPONSE_STRIDE);
            iu::encode_success(task.tag, request_limit_delta, solicited, out)
        } else {
            self.encode_rare(request_limit_delta, solicited)
        };
        length.unwrap_or(0)
    }

    /// Encodes a response with residuals, sense or response data.
    #[inline(never)]
    fn encode_rare(&mut self, request_limit_delta: i32, solicited: bool) -> Option<u32> {
        self.release_table();
        let task = &*self.task;
        let unit = self.unit.as_ref();
        let descriptor_format = unit.is_some_and(|unit| unit.logical_unit.descriptor_sense);
        let mut encoded = [0; iu::SENSE_BYTES_MAX];
        let sense = match (task.status, task.sense.as_ref()) {
            (Status::CheckCondition, Some(code)) => {
                let length = code.encode(descriptor_format, &mut encoded);
                encoded.get(..length).unwrap_or(&[])
            }
            (_, _) if task.sense_bytes != 0 => {
                let kept = &self.kit.forwarded_sense[..];
                kept.get(..usize::from(task.sense_bytes)).unwrap_or(&[])
            }
            _ => &[],
        };
        let success = task.status == Status::Good;
        let residual = |is_used: bool, buffer: &DataBuffer| {
            let offered = buffer.total_bytes();
            // A command that failed moved nothing, but one whose buffer is too small says by how much.
            let wanted = match task.wanted_bytes {
                wanted if is_used && (success || wanted > offered) => wanted,
                _ => 0,
            };
            Residual::between(wanted, offered)
        };
        let is_data_in = task.direction == Direction::In;
        let response = Response {
            tag: task.tag,
            request_limit_delta,
            status: task.status as u8,
            data_out_residual: residual(!is_data_in, &task.data_out),
            data_in_residual: residual(is_data_in, &task.data_in),
            response_code: task.management.map(|management| management.response_code),
            sense,
            solicited,
        };
        let place = self.id.index as usize * RESPONSE_STRIDE;
        let out = self.kit.response_region.bytes_mut(place, RESPONSE_STRIDE);
        iu::encode_response(&response, out).and_then(|length| u32::try_from(length).ok())
    }

    /// The response is posted: the task leaves its task set, and is counted.
    #[inline(always)]
    fn answered(&mut self) {
        let task = &*self.task;
        if task.management.is_some() {
            self.nexus.counters.task_managements += 1;
            return;
        }
        let kind = task.kind;
        let bytes = if kind == OperationKind::Other { 0 } else { task.transfer_bytes };
        let bucket = Histogram::bucket(self.kit.now.since(task.started));
        self.nexus.counters.count(kind, bytes);
        self.nexus.latency[kind as usize].count(bucket);
        if let Some(unit) = self.unit.as_mut() {
            unit.counters.count(kind, bytes);
            unit.latency[kind as usize][size_class(bytes)].count(bucket);
        }
        if task.status != Status::Good {
            self.count_failure();
        }
        self.leave_task_set();
    }

    #[cold]
    fn count_failure(&mut self) {
        self.nexus.counters.count_failure(self.task.status);
        if let Some(unit) = self.unit.as_mut() {
            unit.counters.count_failure(self.task.status);
        }
    }

    /// The queue pair refused a chain: it is closing. Nothing of the chain was queued.
    #[cold]
    fn refused(&mut self, data: u32, reads: u32) -> Step {
        self.task.batch = Batch::None;
        self.channel.data_room += data;
        self.channel.read_room += reads;
        self.task.silent = true;
        self.task.state = State::Aborting;
        Step::Refused
    }

    /// The task's channel is closing: it ends without an answer.
    #[cold]
    fn lose(&mut self) -> Step {
        self.task.silent = true;
        self.task.state = State::Aborting;
        if self.task.is_quiet() { Step::Over } else { Step::Enter(State::Aborting) }
    }

    /// Keeps the sense of a forwarded command until its response is encoded, which follows at once.
    pub(crate) fn keep_forwarded_sense(&mut self, outcome: &lunar_backend::Outcome) {
        let Some(ring) = self.kit.ring.as_ref() else { return };
        let sense = ring.sense(outcome.token);
        let length = sense.len().min(self.kit.forwarded_sense.len());
        if let (Some(to), Some(from)) =
            (self.kit.forwarded_sense.get_mut(..length), sense.get(..length))
        {
            to.copy_from_slice(from);
        }
        if self.task.status != Status::Good {
            self.task.sense_bytes = u16::try_from(length).unwrap_or(0);
        }
    }
}

/// Why a request got no slot.
enum NoSlot {
    /// The channel uses all of its own: wait.
    AllUsed,
    /// The initiator had no credit for the request.
    NoCredit,
    /// The group has none for a channel that was promised it.
    Promised,
}

/// Claims a slot for a request of `channel`, leaving `reserve` slots of the channel: one is kept for
/// task management, whatever the commands do.
#[inline(always)]
fn claim_slot<'a>(
    channel: &mut Channel,
    tasks: &'a mut TaskTable,
    reserve: u32,
) -> Result<(SlotId, &'a mut Task), NoSlot> {
    if channel.slots >= channel.slots_max - reserve {
        return Err(NoSlot::AllUsed);
    }
    if channel.credit.take().is_err() {
        return Err(NoSlot::NoCredit);
    }
    let claimed = tasks.claim().ok_or(NoSlot::Promised)?;
    channel.slots += 1;
    Ok(claimed)
}

/// What a request of `channel` to `lun` in receive buffer `receive` names. Tag, attribute, notification
/// and the length of the CDB are the caller's to fill in.
#[inline(always)]
fn arrival(
    channel_index: u32,
    channel: &Channel,
    nexus: &Nexus,
    lun: [u8; 8],
    receive: u32,
    message: Message,
) -> Arrival {
    let lun = lun::decode(lun).and_then(|number| nexus.find(number)).unwrap_or(NONE);
    Arrival {
        tag: 0,
        attribute: TaskAttribute::Simple,
        notification: SolicitedNotification::default(),
        channel: channel_index,
        nexus: channel.nexus,
        lun,
        unit: nexus.luns.get(lun as usize).map_or(NONE, |lun| lun.unit),
        receive,
        iu_bytes: message.bytes,
        cdb_bytes: 0,
        started: message.since,
    }
}

/// Makes the chain of RDMA requests for what `task.cursor` leaves of the transfer, at most `room` of them
/// and one chain's worth, and moves the cursor. Gives their number. `local` is the task's buffer.
#[inline(never)]
fn chain_list<P: Platform>(
    kit: &mut Kit<P>,
    task: &mut Task,
    room: u32,
    local: Sge,
    id: WorkRequestId,
) -> u32 {
    let list = match task.table.as_ref() {
        Some(table) => kit.card_region.contents(table, table.bytes()),
        None => kit.receive_region.iu(task.receive, task.iu_bytes),
    };
    kit.chain.clear();
    let (buffer, direction) = (task.data(task.direction), task.direction);
    let mut cursor = task.cursor;
    let mut left = room.min(CHAIN_MAX as u32);
    for descriptor in buffer.descriptors(list).skip(cursor.descriptors as usize) {
        let rest = task.transfer_bytes - cursor.bytes;
        if rest == 0 || left == 0 {
            break;
        }
        let length = descriptor.length.min(rest);
        let address = local.address + u64::from(cursor.bytes);
        let local = Sge { address, length, key: local.key };
        kit.chain.push(rdma(id, direction, descriptor, local));
        cursor.bytes += length;
        cursor.descriptors += 1;
        left -= 1;
    }
    task.cursor = cursor;
    kit.chain.len() as u32
}

/// The unsignaled request that moves data in `direction` between `range` of the initiator and `local`:
/// data-in is written to it, data-out read from it.
#[inline(always)]
fn rdma(id: WorkRequestId, direction: Direction, range: Descriptor, local: Sge) -> SendRequest {
    let remote = RemoteAddress { address: range.address, key: range.key };
    let operation = match direction {
        Direction::In => SendOperation::RdmaWrite(remote),
        Direction::Out | Direction::None => SendOperation::RdmaRead(remote),
    };
    SendRequest { id, operation, local, signaled: false }
}
