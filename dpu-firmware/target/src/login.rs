//! Logins, the end of channels, and the life of nexuses.
//!
//! All channels of a nexus live on one poll group: the coordinator chose this one by the port
//! identifiers. A channel moves only forward through its states; a nexus is gone when its last
//! channel and its last task are.

use lunar_platform::{CmEvent, Hca, Nanoseconds, PeerAddress, Platform, QpHandle, QpParameters};
use lunar_srp::channel::{ChannelEvent, ChannelState, Credit};
use lunar_srp::login::{
    self, Action, FORMATS, LoginPolicy, LoginReject, LoginRequest, LoginResponse, OtherChannels,
    PortId,
};

use crate::channel::{Channel, MANAGEMENT_RESERVE, SendQueueShares};
use crate::configuration::{Lun, Target, luns_for};
use crate::fifo::NONE;
use crate::message::{CloseReason, Event, FromGroup};
use crate::mutant::{self, Mutant};
use crate::nexus::{Nexus, NexusLun};
use crate::poll_group::PollGroup;
use crate::task::State;
use crate::trace::Point;

/// Channels one nexus may have.
pub(crate) const CHANNELS_PER_NEXUS: u32 = 16;

/// A SINGLE re-login that waits until nothing of the nexus's older channels is in progress.
pub(crate) struct PendingLogin<C> {
    connection: C,
    request: LoginRequest,
    peer: PeerAddress,
    /// When it is refused.
    deadline: Nanoseconds,
}

/// The policy of `target`, or of a port that is not there, where receive buffers hold `receive_bytes`.
pub(crate) fn policy(
    target: Option<&Target>,
    request: &LoginRequest,
    receive_bytes: u32,
) -> LoginPolicy {
    LoginPolicy {
        enabled: target.is_some_and(|target| target.enabled),
        target_port: target.map_or(request.target_port, |target| PortId(target.port_id)),
        it_iu_bytes_max: target
            .map_or(receive_bytes, |target| target.it_iu_bytes_max.min(receive_bytes)),
        request_limit: target.map_or(0, |target| target.request_limit),
        channels_max: CHANNELS_PER_NEXUS,
    }
}

impl<P: Platform> PollGroup<P> {
    /// A login whose nexus belongs here. The coordinator has checked it against the policy.
    pub(crate) fn on_login(
        &mut self,
        connection: P::Connection,
        request: LoginRequest,
        peer: PeerAddress,
    ) {
        let Some(nexus) = self.find_nexus(&request) else {
            return self.finish_login(connection, request, peer, false);
        };
        if request.action == Action::Single {
            self.close_nexus(nexus, CloseReason::Replaced);
            // The newest SINGLE login replaces those of the same port that wait as well.
            self.refuse_pending(&request);
        } else if self.is_open(nexus) {
            return self.finish_login(connection, request, peer, false);
        }
        if !self.nexuses[nexus as usize].in_use || mutant::is(Mutant::LoginBeforeDrain) {
            return self.finish_login(connection, request, peer, true);
        }
        // The answer waits: a late write must not land after the retry that follows it.
        let deadline = self.kit.now.plus(2 * self.limits.drain_wait_ns);
        self.pending_logins.push(PendingLogin { connection, request, peer, deadline });
    }

    /// Whether a channel of the nexus is not closing.
    fn is_open(&self, nexus: u32) -> bool {
        self.channels
            .iter()
            .any(|channel| channel.is_in_use() && channel.nexus == nexus && channel.is_open())
    }

    fn refuse_pending(&mut self, newest: &LoginRequest) {
        while let Some(place) = self.pending_logins.iter().position(|pending| {
            pending.request.initiator_port == newest.initiator_port
                && pending.request.target_port == newest.target_port
        }) {
            let PendingLogin { connection, request, peer, .. } = self.pending_logins.remove(place);
            self.reject(connection, &request, peer, LoginReject::CannotEstablish);
        }
    }

    /// Looks again at the logins that wait for older channels of their nexus, in their order.
    pub(crate) fn retry_logins(&mut self) {
        let mut place = 0;
        while place < self.pending_logins.len() {
            let pending = &self.pending_logins[place];
            let known = self.find_nexus(&pending.request);
            let busy = known.is_some_and(|nexus| !self.is_open(nexus));
            if busy && self.kit.now < pending.deadline {
                place += 1;
                continue;
            }
            let PendingLogin { connection, request, peer, .. } = self.pending_logins.remove(place);
            if busy {
                self.reject(connection, &request, peer, LoginReject::CannotEstablish);
            } else {
                self.finish_login(connection, request, peer, known.is_none());
            }
        }
    }

    fn find_nexus(&self, request: &LoginRequest) -> Option<u32> {
        self.nexuses
            .iter()
            .position(|nexus| {
                nexus.in_use
                    && nexus.initiator == request.initiator_port
                    && nexus.target_port == request.target_port
            })
            .and_then(|place| u32::try_from(place).ok())
    }

    fn finish_login(
        &mut self,
        connection: P::Connection,
        request: LoginRequest,
        peer: PeerAddress,
        terminated: bool,
    ) {
        let configuration = self.kit.configuration.clone();
        let target = configuration.target_of_port(&request.target_port);
        if let Err(reason) =
            login::decide(&request, &policy(target, &request, self.limits.receive_bytes))
        {
            return self.reject(connection, &request, peer, reason);
        }
        let Some(target) = target else {
            return self.reject(connection, &request, peer, LoginReject::CannotAssociate);
        };
        let known = self.find_nexus(&request);
        if let Some(nexus) = known
            && self.nexuses[nexus as usize].channels >= CHANNELS_PER_NEXUS
        {
            return self.reject(connection, &request, peer, LoginReject::ChannelLimit);
        }
        let attributes = self.kit.hca.attributes();
        let shares = SendQueueShares::new(target.request_limit, attributes.send_queue_depth_max);
        let Some(shares) = shares.filter(|shares| self.has_room_for(*shares)) else {
            return self.reject(connection, &request, peer, LoginReject::InsufficientResources);
        };
        let request_limit = shares.request_limit;
        let parameters = QpParameters {
            send_queue_depth: shares.depth(),
            rdma_reads: attributes.rdma_reads_max,
        };
        let immediate_offset = login::immediate_granted(&request);
        let response = LoginResponse {
            tag: request.tag,
            request_limit: i32::try_from(request_limit).unwrap_or(i32::MAX),
            it_iu_bytes_max: request.it_iu_bytes,
            ti_iu_bytes_max: u32::try_from(lunar_srp::iu::RESPONSE_BYTES_MAX).unwrap_or(0),
            formats: FORMATS,
            others: match (known, terminated) {
                (Some(_), _) => OtherChannels::Maintained,
                (None, true) => OtherChannels::Terminated,
                (None, false) => OtherChannels::None,
            },
            immediate: immediate_offset.is_some(),
        };
        let mut private_data = [0; 64];
        let length = login::encode_response(&response, &mut private_data).unwrap_or(0);
        let Ok(qp) =
            self.kit.hca.accept(connection, parameters, private_data.get(..length).unwrap_or(&[]))
        else {
            self.kit.counters.rejects += 1;
            self.tell_event(Event::Rejected {
                peer,
                initiator: Some(request.initiator_port),
                reason: LoginReject::InsufficientResources,
                text: "the HCA could not give another queue pair, or the peer went away".into(),
            });
            return;
        };
        let nexus = match known {
            Some(nexus) => nexus,
            None => self.new_nexus(&request, target, peer),
        };
        self.nexuses[nexus as usize].channels += 1;
        self.slots_promised += request_limit + MANAGEMENT_RESERVE;
        self.send_depths += parameters.send_queue_depth;
        self.kit.counters.logins += 1;
        self.channels[qp.index as usize] = Channel {
            qp,
            state: ChannelState::Connecting,
            nexus,
            credit: Credit::new(request_limit),
            slots_max: request_limit + MANAGEMENT_RESERVE,
            send_queue_depth: parameters.send_queue_depth,
            data_room: shares.data_room,
            read_room: parameters.rdma_reads,
            it_iu_bytes_max: request.it_iu_bytes,
            immediate_offset,
            ..Channel::vacant()
        };
    }

    /// Whether the sums of DESIGN section 4 still hold with one more channel of these shares.
    fn has_room_for(&self, shares: SendQueueShares) -> bool {
        let attributes = self.kit.hca.attributes();
        // Granted credits + task management reserve <= slots (and SRQ buffers, which are as many).
        let slots = self.slots_promised + shares.request_limit + MANAGEMENT_RESERVE;
        // Possible completions: every receive, and every place of every send queue (a flushed queue
        // reports all of them).
        let completions = self.limits.slots + self.send_depths + shares.depth();
        slots <= self.limits.slots
            && completions <= attributes.completion_queue_depth
            && self.channels.iter().any(|channel| !channel.is_in_use())
    }

    fn new_nexus(&mut self, request: &LoginRequest, target: &Target, peer: PeerAddress) -> u32 {
        let place = match self.nexuses.iter().position(|nexus| !nexus.in_use) {
            Some(place) => place,
            None => {
                let cap = self.limits.nexus_share_bytes;
                self.nexuses.push(Box::new(Nexus::new(cap, cap)));
                self.nexuses.len() - 1
            }
        };
        // The group's index makes handles unique over all groups.
        let handle = self.next_nexus << 8 | u32::from(self.index);
        self.next_nexus = self.next_nexus.wrapping_add(1).max(1);
        let cap = self.limits.nexus_share_bytes;
        let nexus = &mut self.nexuses[place];
        **nexus = Nexus::new(cap, cap);
        nexus.in_use = true;
        nexus.handle = handle;
        nexus.initiator = request.initiator_port;
        nexus.target_port = request.target_port;
        nexus.target = target.handle;
        nexus.peer = peer;
        let configuration = &self.kit.configuration;
        let own = configuration.reserving_nexus(&request.initiator_port, target.handle);
        let lun = |lun: &Lun| {
            let state = configuration.access_state(target.handle, lun.unit);
            NexusLun::new(lun, state, configuration.access(&own, lun.unit))
        };
        nexus.luns = visible_luns(target, nexus).iter().map(lun).collect();
        nexus.index_luns();
        let (initiator, target) = (nexus.initiator, nexus.target);
        self.tell(FromGroup::Event(Event::Login { nexus: handle, initiator, target, peer }));
        u32::try_from(place).unwrap_or(NONE)
    }

    fn reject(
        &mut self,
        connection: P::Connection,
        request: &LoginRequest,
        peer: PeerAddress,
        reason: LoginReject,
    ) {
        self.kit.counters.rejects += 1;
        let mut private_data = [0; 64];
        let length = login::encode_reject(reason, request.tag, &mut private_data).unwrap_or(0);
        self.kit.hca.reject(connection, private_data.get(..length).unwrap_or(&[]));
        let configuration = self.kit.configuration.clone();
        let policy = policy(
            configuration.target_of_port(&request.target_port),
            request,
            self.limits.receive_bytes,
        );
        self.tell_event(Event::Rejected {
            peer,
            initiator: Some(request.initiator_port),
            reason,
            text: reason.explain(request, &policy).to_string(),
        });
    }

    /// What the connection manager or the device reports.
    pub(crate) fn on_cm_event(&mut self, event: CmEvent) {
        match event {
            CmEvent::Established(qp) => {
                if let Some(channel) = self.channel_of(qp) {
                    let entry = &mut self.channels[channel as usize];
                    entry.state = entry.state.on(ChannelEvent::Established);
                }
            }
            CmEvent::Disconnected(qp) => {
                if let Some(channel) = self.channel_of(qp) {
                    self.close_channel(channel, CloseReason::PeerGone);
                    let entry = &mut self.channels[channel as usize];
                    entry.state = entry.state.on(ChannelEvent::Disconnected);
                }
            }
            CmEvent::QpFatal(qp) => {
                if let Some(channel) = self.channel_of(qp) {
                    self.close_channel(channel, CloseReason::WorkRequestFailed);
                }
            }
            CmEvent::Drained(qp) => {
                if let Some(channel) = self.channel_of(qp) {
                    self.close_channel(channel, CloseReason::PeerGone);
                    self.channels[channel as usize].drained = true;
                    self.settle_channel(channel);
                }
            }
            CmEvent::PortDown | CmEvent::PortUp => {}
            CmEvent::DeviceFatal => {
                self.tell_event(Event::DeviceFatal);
                for channel in 0..u32::try_from(self.channels.len()).unwrap_or(0) {
                    if self.channels[channel as usize].is_in_use() {
                        self.close_channel(channel, CloseReason::WorkRequestFailed);
                    }
                }
            }
        }
    }

    pub(crate) fn channel_of(&self, qp: QpHandle) -> Option<u32> {
        self.channels.get(qp.index as usize).filter(|channel| channel.qp == qp).map(|_| qp.index)
    }

    /// Starts the end of a channel: no more responses, every task marked, the queue pair closed once the
    /// initiator was told.
    /// Idempotent.
    pub(crate) fn close_channel(&mut self, channel: u32, reason: CloseReason) {
        let entry = &mut self.channels[channel as usize];
        if !entry.is_open() {
            return self.hurry_logout(channel, reason);
        }
        let was_live = entry.state == ChannelState::Live;
        entry.state = entry.state.on(ChannelEvent::Close);
        let nexus = entry.nexus;
        self.part_from(channel, reason, was_live);
        self.kit.counters.disconnects += 1;
        let handle = self.nexuses[nexus as usize].handle;
        self.tell_event(Event::ChannelClosed { nexus: handle, reason });
        let mut from = 0;
        while let Some(index) = self.tasks.live_from(from) {
            from = index + 1;
            let task = self.tasks.at(index);
            if task.channel != channel {
                continue;
            }
            self.kit.record(task.tag, Point::ChannelLost(task.state));
            if self.tasks.at(index).management.is_some() {
                self.drop_management(index);
            } else {
                self.abort(index);
            }
        }
        while let Some(index) =
            self.channels[channel as usize].receives.pop(&mut self.kit.receive_region.links)
        {
            self.kit.repost(index);
        }
        self.settle_channel(channel);
    }

    /// Closes every channel of a nexus.
    pub(crate) fn close_nexus(&mut self, nexus: u32, reason: CloseReason) {
        for channel in 0..u32::try_from(self.channels.len()).unwrap_or(0) {
            let entry = &self.channels[channel as usize];
            if entry.is_in_use() && entry.nexus == nexus {
                self.close_channel(channel, reason);
            }
        }
    }

    /// Frees a closed channel once its last task is over and its queue pair is drained, and the
    /// nexus with its last channel.
    pub(crate) fn settle_channel(&mut self, channel: u32) {
        let entry = &mut self.channels[channel as usize];
        if !entry.is_in_use() || entry.is_open() || !entry.drained || entry.slots != 0 {
            return;
        }
        let (qp, nexus, slots) = (entry.qp, entry.nexus, entry.slots_max);
        let send_queue_depth = entry.send_queue_depth;
        *entry = Channel::vacant();
        self.kit.hca.destroy(qp);
        self.slots_promised -= slots;
        self.send_depths -= send_queue_depth;
        let nexus = &mut self.nexuses[nexus as usize];
        nexus.channels -= 1;
        if nexus.channels == 0 {
            // The I_T nexus is lost (SAM-6 6.3.4): its task sets and unit attentions go with it.
            nexus.in_use = false;
            let handle = nexus.handle;
            self.tell(FromGroup::Event(Event::Logout { nexus: handle }));
            self.kit.ends_seen = true;
        }
    }

    /// Closes the channels of a target, or all of them.
    pub(crate) fn close_target(&mut self, target: Option<u32>) {
        for nexus in 0..u32::try_from(self.nexuses.len()).unwrap_or(0) {
            let entry = &self.nexuses[nexus as usize];
            if entry.in_use && target.is_none_or(|target| target == entry.target) {
                self.close_nexus(nexus, CloseReason::Administrative);
            }
        }
    }

    /// How many tasks are in each state, for tests and the simulator.
    #[must_use]
    pub fn states(&self) -> Vec<(u64, State)> {
        let mut states = Vec::new();
        let mut from = 0;
        while let Some(index) = self.tasks.live_from(from) {
            from = index + 1;
            let task = self.tasks.at(index);
            states.push((task.tag, task.state));
        }
        states
    }
}

/// The LUNs that `nexus` sees at `target`: by its address or by its initiator port identifier.
pub(crate) fn visible_luns<'a>(target: &'a Target, nexus: &Nexus) -> &'a [Lun] {
    let port = nexus.initiator.to_string();
    luns_for(target, &[nexus.peer.as_str(), &port])
}
