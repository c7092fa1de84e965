//! The coordinator: what concerns more than one poll group. It takes connection requests and
//! chooses their group, hands out configurations, and runs the gates. It lives on the control core,
//! talks to the groups only by messages, and is on no command's way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use lunar_platform::{ConnectRequest, Listener, Platform};
use lunar_srp::login::{self, LoginReject, LoginRequest, PortId};
use rtrb::{Consumer, Producer, RingBuffer};

use crate::configuration::Configuration;
use crate::login::policy;
use crate::message::{Event, FromGroup, GateCause, RingAttachment, ToGroup};
use crate::statistics::GroupStatistics;

/// Messages a queue between the coordinator and a group holds; more wait at the sender.
const MAILBOX: usize = 256;

/// Both queues between the coordinator and one group: its ends, then the group's.
#[must_use]
pub fn mailbox<P: Platform>() -> (GroupLink<P>, Consumer<ToGroup<P>>, Producer<FromGroup>) {
    let (to_group, inbox) = RingBuffer::new(MAILBOX);
    let (outbox, from_group) = RingBuffer::new(MAILBOX);
    let link = GroupLink { to_group, from_group, device: 0, backlog: VecDeque::new(), sent: false };
    (link, inbox, outbox)
}

/// The coordinator's ends of one group's queues.
pub struct GroupLink<P: Platform> {
    to_group: Producer<ToGroup<P>>,
    from_group: Consumer<FromGroup>,
    /// Which of the card's HCAs the group has a share of.
    device: u16,
    backlog: VecDeque<ToGroup<P>>,
    /// Something was sent since the owner last asked.
    sent: bool,
}

impl<P: Platform> GroupLink<P> {
    /// The link of a group that has a share of another HCA than the first.
    #[must_use]
    pub fn on_device(self, device: u16) -> Self {
        Self { device, ..self }
    }

    fn send(&mut self, message: ToGroup<P>) {
        self.backlog.push_back(message);
        self.flush();
    }

    fn flush(&mut self) {
        self.sent |= !self.backlog.is_empty();
        while let Some(message) = self.backlog.pop_front() {
            if let Err(rtrb::PushError::Full(message)) = self.to_group.push(message) {
                self.backlog.push_front(message);
                return;
            }
        }
    }
}

/// What the coordinator has to say to the control channel.
pub enum Report {
    /// Every group runs under this configuration generation.
    Configured {
        /// Its generation.
        generation: u32,
    },
    /// Something for the log.
    Event(Event),
    /// Every group's statistics for a request.
    Statistics(Vec<GroupStatistics>),
    /// No group uses the host's memory any more.
    RingsReleased,
    /// The unit (handle) was reset, and waits for [`Coordinator::reset_reported`] with this name.
    UnitReset {
        /// Handle of the unit.
        unit: u32,
        /// Name of the reset.
        gate: u32,
    },
    /// A group attached its ring.
    RingAttached {
        /// The offer that is answered.
        offer: u64,
        /// The ring's number.
        ring: u16,
        /// Operations in flight on it: (token, sequence).
        in_flight: Vec<(u64, u32)>,
        /// Why it failed, in words.
        error: Option<String>,
    },
}

/// A gate on its way through the groups.
struct Gate {
    name: u32,
    unit: u32,
    cause: GateCause,
    origin: usize,
    /// The originating group's name for the function.
    request: u64,
    /// Groups that did not acknowledge yet; `None` while an earlier gate of the unit is closed.
    waiting: Option<usize>,
    /// What the host has to do with it.
    host: HostPart,
}

/// What keeps a gate closed that is closed in every group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HostPart {
    /// The host was not told.
    Untold,
    /// The host was told of the reset and has not answered.
    Told,
    /// The host's answer is this configuration generation, which is not in force yet.
    Configured(u32),
}

/// A configuration on its way through the groups.
struct Rollout {
    configuration: Arc<Configuration>,
    waiting: usize,
}

/// See the module's text.
pub struct Coordinator<P: Platform> {
    listener: P::Listener,
    groups: Vec<GroupLink<P>>,
    configuration: Arc<Configuration>,
    rollout: Option<Rollout>,
    /// The newest snapshot that waits for the running rollout; older ones that waited are skipped.
    next: Option<Arc<Configuration>>,
    gates: VecDeque<Gate>,
    next_gate: u32,
    /// Whether there is a host that wants to know of resets.
    reports_resets: bool,
    /// Units (handles) that were reset while there was none.
    unreported: BTreeSet<u32>,
    /// The newest generation that is in force in every group.
    in_force: u32,
    /// Groups that still use the host's memory after [`Self::release_rings`].
    releasing: usize,
    statistics: Vec<GroupStatistics>,
    reports: VecDeque<Report>,
    /// Nexuses by initiator port and target (handle): their names, and the groups that they live on.
    homes: BTreeMap<(PortId, u32), (u32, usize)>,
}

impl<P: Platform> Coordinator<P> {
    /// A coordinator of `groups`, in order of their indexes.
    #[must_use]
    pub fn new(listener: P::Listener, groups: Vec<GroupLink<P>>) -> Self {
        Self {
            listener,
            groups,
            configuration: Arc::new(Configuration::default()),
            rollout: None,
            next: None,
            gates: VecDeque::new(),
            next_gate: 1,
            reports_resets: false,
            unreported: BTreeSet::new(),
            in_force: 0,
            releasing: 0,
            statistics: Vec::new(),
            reports: VecDeque::new(),
            homes: BTreeMap::new(),
        }
    }

    /// One turn; `true` when something happened. Never blocks.
    pub fn poll(&mut self) -> bool {
        let mut busy = false;
        while let Some(request) = self.listener.poll() {
            busy = true;
            self.on_connect(request);
        }
        for group in 0..self.groups.len() {
            self.groups[group].flush();
            while let Ok(message) = self.groups[group].from_group.pop() {
                busy = true;
                self.on_message(group, message);
            }
        }
        busy
    }

    /// Whether messages went to groups since the last call: the owner wakes sleeping ones.
    pub fn take_sent(&mut self) -> bool {
        self.groups.iter_mut().fold(false, |sent, group| sent | std::mem::take(&mut group.sent))
    }

    /// The next thing to tell the control channel.
    pub fn report(&mut self) -> Option<Report> {
        self.reports.pop_front()
    }

    /// The listener, for its event descriptor.
    pub fn listener(&self) -> &P::Listener {
        &self.listener
    }

    /// Brings a snapshot in. Snapshots follow each other; only the newest of those that wait is used.
    pub fn configure(&mut self, configuration: Configuration) {
        self.next = Some(Arc::new(configuration));
        self.start_rollout();
    }

    /// The snapshot that logins are checked against.
    #[must_use]
    pub fn configuration(&self) -> &Arc<Configuration> {
        &self.configuration
    }

    /// Tells every group that the agent is gone.
    pub fn detach_rings(&mut self) {
        for group in &mut self.groups {
            group.send(ToGroup::DetachRing);
        }
    }

    /// Hands group `group` its ring. `false` when there is no such group.
    pub fn attach_ring(&mut self, group: usize, attachment: RingAttachment) -> bool {
        let Some(link) = self.groups.get_mut(group) else { return false };
        link.send(ToGroup::AttachRing(Box::new(attachment)));
        true
    }

    /// The host has reconciled the ring of `group`: it may run.
    pub fn resume_ring(&mut self, group: usize) {
        if let Some(link) = self.groups.get_mut(group) {
            link.send(ToGroup::ResumeRing);
        }
    }

    /// An announced revoke: [`Report::RingsReleased`] tells when no group uses the host's memory.
    pub fn release_rings(&mut self) {
        self.releasing = self.groups.len();
        for group in &mut self.groups {
            group.send(ToGroup::ReleaseRing);
        }
    }

    /// Closes every channel of a nexus (handle).
    pub fn close_nexus(&mut self, nexus: u32) {
        for group in &mut self.groups {
            group.send(ToGroup::CloseNexus { nexus });
        }
    }

    /// Whether there is a host that wants to know of resets: it hears of those that it missed. Without one
    /// no gate waits for it.
    pub fn report_resets(&mut self, reports: bool) {
        self.reports_resets = reports;
        if reports {
            for unit in std::mem::take(&mut self.unreported) {
                // No gate has this name: nothing waits for the answer.
                self.reports.push_back(Report::UnitReset { unit, gate: 0 });
            }
            return;
        }
        let told: Vec<(u32, u32)> = self
            .gates
            .iter()
            .filter(|gate| gate.host != HostPart::Untold)
            .map(|gate| (gate.name, gate.unit))
            .collect();
        for (gate, unit) in told {
            self.unreported.insert(unit);
            self.finish_gate(gate);
        }
    }

    /// The host knows of the reset with this name. What it changed for it is in the configuration of
    /// `required_generation`, unless that is 0.
    pub fn reset_reported(&mut self, gate: u32, required_generation: u32) {
        let told = |known: &&mut Gate| known.name == gate && known.host == HostPart::Told;
        let Some(found) = self.gates.iter_mut().find(told) else { return };
        if required_generation <= self.in_force {
            self.finish_gate(gate);
        } else {
            found.host = HostPart::Configured(required_generation);
        }
    }

    /// The configuration of this generation was refused and will never be in force: nothing waits for it.
    pub fn refused(&mut self, generation: u32) {
        self.finish_gates_until(generation);
    }

    /// Number of poll groups.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// The host's memory is gone.
    pub fn reset_rings(&mut self) {
        for group in &mut self.groups {
            group.send(ToGroup::ResetRing);
        }
    }

    /// Closes the channels of a target, or all.
    pub fn close_channels(&mut self, target: Option<u32>) {
        for group in &mut self.groups {
            group.send(ToGroup::CloseChannels { target });
        }
    }

    /// Asks every group for its statistics; they come as one [`Report::Statistics`].
    pub fn request_statistics(&mut self, request: u64) {
        for group in &mut self.groups {
            let statistics = Box::new(GroupStatistics { request, ..GroupStatistics::default() });
            group.send(ToGroup::Statistics(statistics));
        }
    }

    fn on_connect(&mut self, request: ConnectRequest<P::Connection>) {
        let ConnectRequest { connection, private_data, peer, device } = request;
        let bytes = private_data.as_bytes();
        let login = match login::parse(bytes) {
            Ok(login) => login,
            Err(reason) => {
                let text = login::explain_malformed(bytes).to_string();
                self.refuse(connection, 0, reason);
                self.reports.push_back(Report::Event(Event::Rejected {
                    peer,
                    initiator: None,
                    reason,
                    text,
                }));
                return;
            }
        };
        let target = self
            .configuration
            .target_of_port(&login.target_port)
            .or_else(|| self.configuration.targets.first());
        // The group compares the IU length with its receive buffers.
        let policy = policy(target, &login, u32::MAX);
        if let Err(reason) = login::decide(&login, &policy) {
            let text = reason.explain(&login, &policy).to_string();
            self.refuse(connection, login.tag, reason);
            self.reports.push_back(Report::Event(Event::Rejected {
                peer,
                initiator: Some(login.initiator_port),
                reason,
                text,
            }));
            return;
        }
        if let Some(nexus) = self.elsewhere(&login, target.map(|target| target.handle), device) {
            // One nexus lives on one group. It goes, and the initiator's next try finds it gone.
            self.close_nexus(nexus);
            let reason = LoginReject::CannotEstablish;
            self.refuse(connection, login.tag, reason);
            let text = format!(
                "login of initiator port {} refused: it is logged in over another HCA of the card, where its \
                 channels are closed now; let it retry",
                login.initiator_port
            );
            let initiator = Some(login.initiator_port);
            let event = Event::Rejected { peer, initiator, reason, text };
            return self.reports.push_back(Report::Event(event));
        }
        let count = self.groups.iter().filter(|link| link.device == device).count();
        let chosen = group_of(&login.initiator_port, &login.target_port, count);
        if let Some(link) = self.groups.iter_mut().filter(|link| link.device == device).nth(chosen)
        {
            link.send(ToGroup::Login { connection, request: login, peer });
        }
    }

    /// The nexus that `login` is about, where it lives on a group of another HCA than `device`.
    fn elsewhere(&self, login: &LoginRequest, target: Option<u32>, device: u16) -> Option<u32> {
        let ports = (login.initiator_port, target?);
        let (nexus, group) = self.homes.get(&ports)?;
        self.groups.get(*group).is_some_and(|link| link.device != device).then_some(*nexus)
    }

    /// Remembers where nexuses live.
    fn follow(&mut self, group: usize, event: &Event) {
        match event {
            Event::Login { nexus, initiator, target, .. } => {
                self.homes.insert((*initiator, *target), (*nexus, group));
            }
            Event::Logout { nexus } => self.homes.retain(|_, (known, _)| known != nexus),
            _ => {}
        }
    }

    fn refuse(&mut self, connection: P::Connection, tag: u64, reason: LoginReject) {
        let mut private_data = [0; 64];
        let length = login::encode_reject(reason, tag, &mut private_data).unwrap_or(0);
        self.listener.reject(connection, private_data.get(..length).unwrap_or(&[]));
    }

    fn on_message(&mut self, group: usize, message: FromGroup) {
        match message {
            FromGroup::Configured { generation } => self.on_configured(generation),
            FromGroup::RequestGate { request, unit, cause } => {
                if cause != GateCause::Alone {
                    // It aborts them all, and a task that never ends must not keep it out. Its gate takes the place of
                    // theirs without opening that, so nothing slips between them.
                    self.gates.retain(|gate| gate.unit != unit || gate.cause != GateCause::Alone);
                }
                let name = self.next_gate;
                self.next_gate = self.next_gate.wrapping_add(1).max(1);
                self.gates.push_back(Gate {
                    name,
                    unit,
                    cause,
                    origin: group,
                    request,
                    waiting: None,
                    host: HostPart::Untold,
                });
                self.start_gates();
            }
            FromGroup::GateClosed { gate } => self.on_gate_closed(gate),
            FromGroup::GateOver { request } => {
                let is_its = |gate: &Gate| {
                    gate.cause == GateCause::Alone
                        && (gate.origin, gate.request) == (group, request)
                };
                if let Some(place) = self.gates.iter().position(is_its)
                    && let Some(gate) = self.gates.remove(place)
                {
                    self.open_gate(&gate);
                }
            }
            FromGroup::Event(event) => {
                self.follow(group, &event);
                self.reports.push_back(Report::Event(event));
            }
            FromGroup::Statistics(statistics) => {
                self.statistics.push(*statistics);
                if self.statistics.len() >= self.groups.len() {
                    let all = std::mem::take(&mut self.statistics);
                    self.reports.push_back(Report::Statistics(all));
                }
            }
            FromGroup::RingReleased => {
                self.releasing = self.releasing.saturating_sub(1);
                if self.releasing == 0 {
                    self.reports.push_back(Report::RingsReleased);
                }
            }
            FromGroup::RingAttached { offer, ring, in_flight, error } => {
                self.reports.push_back(Report::RingAttached { offer, ring, in_flight, error });
            }
        }
    }

    fn start_rollout(&mut self) {
        if self.rollout.is_some() {
            return;
        }
        let Some(configuration) = self.next.take() else { return };
        self.configuration = configuration.clone();
        self.rollout =
            Some(Rollout { configuration: configuration.clone(), waiting: self.groups.len() });
        for group in &mut self.groups {
            group.send(ToGroup::Configure(configuration.clone()));
        }
    }

    fn on_configured(&mut self, generation: u32) {
        let Some(rollout) = self.rollout.as_mut() else { return };
        if rollout.configuration.generation != generation {
            return;
        }
        rollout.waiting = rollout.waiting.saturating_sub(1);
        if rollout.waiting == 0 {
            self.rollout = None;
            self.in_force = generation;
            self.reports.push_back(Report::Configured { generation });
            self.finish_gates_until(generation);
            self.start_rollout();
        }
    }

    /// Closes the gates whose unit no earlier gate holds.
    fn start_gates(&mut self) {
        for place in 0..self.gates.len() {
            let unit = self.gates[place].unit;
            let earlier = self.gates.iter().take(place).any(|gate| gate.unit == unit);
            let gate = &mut self.gates[place];
            if earlier || gate.waiting.is_some() {
                continue;
            }
            gate.waiting = Some(self.groups.len());
            let (name, cause) = (gate.name, gate.cause);
            for group in &mut self.groups {
                group.send(ToGroup::CloseGate { gate: name, unit, cause });
            }
        }
    }

    fn on_gate_closed(&mut self, name: u32) {
        let Some(place) = self.gates.iter().position(|gate| gate.name == name) else { return };
        let gate = &mut self.gates[place];
        let left = gate.waiting.map_or(0, |waiting| waiting.saturating_sub(1));
        gate.waiting = Some(left);
        if left != 0 {
            return;
        }
        if gate.cause == GateCause::Alone {
            // It opens when the task is over.
            let (origin, request) = (gate.origin, gate.request);
            if let Some(origin) = self.groups.get_mut(origin) {
                origin.send(ToGroup::CompleteGate { request });
            }
            return;
        }
        let unit = gate.unit;
        let known = self.configuration.unit(unit);
        let is_hosts = gate.cause == GateCause::LogicalUnitReset
            && known.is_some_and(|unit| unit.logical_unit.forwards);
        if is_hosts && self.reports_resets {
            gate.host = HostPart::Told;
            return self.reports.push_back(Report::UnitReset { unit, gate: name });
        }
        if is_hosts {
            self.unreported.insert(unit);
        }
        self.finish_gate(name);
    }

    /// Finishes the gates that wait for a configuration up to this one.
    fn finish_gates_until(&mut self, generation: u32) {
        let is_due =
            |gate: &&Gate| matches!(gate.host, HostPart::Configured(due) if due <= generation);
        let due: Vec<u32> = self.gates.iter().filter(is_due).map(|gate| gate.name).collect();
        for gate in due {
            self.finish_gate(gate);
        }
    }

    fn finish_gate(&mut self, name: u32) {
        let Some(place) = self.gates.iter().position(|gate| gate.name == name) else { return };
        let Some(gate) = self.gates.remove(place) else { return };
        // Every group is quiet and its unit attentions are established: the function may answer.
        if let Some(origin) = self.groups.get_mut(gate.origin) {
            origin.send(ToGroup::CompleteGate { request: gate.request });
        }
        self.open_gate(&gate);
    }

    /// Opens a gate that is not in the list any more, and lets the next ones follow. Groups that it was not closed in do
    /// not mind.
    fn open_gate(&mut self, gate: &Gate) {
        for group in &mut self.groups {
            group.send(ToGroup::OpenGate { gate: gate.name, unit: gate.unit });
        }
        self.start_gates();
    }
}

/// The index of the poll group, of `groups`, that a nexus of these ports lives on. All its channels
/// live on one, so the choice depends on the port identifiers alone (FNV-1a; no randomised hashing,
/// so that a run can be repeated).
#[must_use]
pub fn group_of(initiator: &PortId, target: &PortId, groups: usize) -> usize {
    let bytes = initiator.0.iter().chain(&target.0);
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The low bits of FNV are its weakest.
    usize::try_from((hash >> 32) % groups.max(1) as u64).unwrap_or(0)
}
