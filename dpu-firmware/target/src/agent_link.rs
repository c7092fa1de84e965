//! The card's end of the control channel: messages in, messages out, and what they do to the
//! coordinator. No sockets here: the firmware and the simulator carry the messages.
//!
//! The agent says Hello and the card answers. Then the agent says where the rings are; the groups
//! attach; the card says that they are ready and, ring by ring, what is in flight since an earlier
//! agent; with each answer that ring runs. Configurations may come at any time after the Hello.

use std::collections::{BTreeMap, VecDeque};

use lunar_offload_proto::checked;
use lunar_offload_proto::control::{
    self, ConfigurationApplied, ConfigurationRefused, DeviceGroup, EventLevel, Goodbye, Heartbeat,
    Hello, HelloAccepted, HelloRefused, InFlight, NexusEvent, NexusEventKind, Reconcile, Revoked,
    RingSetup, RingSetupRefused, RingsReady, ToCard, ToHost, UnitReset, UnitState, feature,
    negotiate, to_card, to_host,
};
use lunar_offload_proto::ring::RingLayout;
use lunar_platform::{Nanoseconds, Platform};

use crate::configuration::Configuration;
use crate::coordinator::{Coordinator, Report};
use crate::message::{Event, RingAttachment};

/// Nanoseconds between two signs of life.
const HEARTBEAT_NS: u64 = 1_000_000_000;

/// What a ring waits for before it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
enum RingState {
    /// The group attaches it.
    Attaching,
    /// The host is asked what became of what is in flight.
    Reconciling,
    /// It runs.
    Running,
}

/// One ring pair of the agent's offer.
struct Ring {
    id: u32,
    group: usize,
    state: RingState,
    in_flight: Vec<(u64, u32)>,
}

/// See the module's text.
pub struct AgentLink {
    hello: Hello,
    met: bool,
    /// Epoch of the agent that is connected, and of the one before.
    agent_epoch: u64,
    previous_epoch: u64,
    rings: Vec<Ring>,
    /// Counts the offers of rings, so that answers to an older one are told apart.
    offer: u64,
    /// Nexuses that are logged in, by handle: a new agent is told of them.
    nexuses: BTreeMap<u32, NexusEvent>,
    /// Those of the newest configuration: a new agent is told what became of them.
    device_groups: Vec<DeviceGroup>,
    /// Arenas of the current offer, to name the one that is revoked.
    revoking: Option<u32>,
    statistics_request: Option<u32>,
    heartbeats: u64,
    next_heartbeat: Nanoseconds,
    outgoing: VecDeque<to_host::Message>,
    closing: Option<String>,
}

impl AgentLink {
    /// The link of a card that introduces itself with `hello`.
    #[must_use]
    pub fn new(hello: Hello) -> Self {
        Self {
            hello,
            met: false,
            agent_epoch: 0,
            previous_epoch: 0,
            rings: Vec::new(),
            offer: 0,
            nexuses: BTreeMap::new(),
            device_groups: Vec::new(),
            revoking: None,
            statistics_request: None,
            heartbeats: 0,
            next_heartbeat: Nanoseconds(0),
            outgoing: VecDeque::new(),
            closing: None,
        }
    }

    /// The control channel is gone. Channels to initiators stay; rings stop and keep what they have.
    pub fn lost<P: Platform>(&mut self, coordinator: &mut Coordinator<P>) {
        self.met = false;
        self.closing = None;
        self.outgoing.clear();
        self.rings.clear();
        self.revoking = None;
        self.statistics_request = None;
        self.previous_epoch = self.agent_epoch;
        coordinator.report_resets(false);
        coordinator.detach_rings();
    }

    /// Why the channel must be closed after what is in [`Self::next_message`], if it must.
    pub fn take_closing(&mut self) -> Option<String> {
        self.closing.take()
    }

    /// The channel cannot go on, for `reason`.
    pub fn end(&mut self, reason: &str) {
        self.closing = Some(reason.to_owned());
    }

    /// The next message to send.
    pub fn next_message(&mut self) -> Option<ToHost> {
        self.outgoing.pop_front().map(|message| ToHost { message: Some(message) })
    }

    /// Takes a message of the agent.
    pub fn receive<P: Platform>(&mut self, message: ToCard, coordinator: &mut Coordinator<P>) {
        match (self.met, message.message) {
            (false, Some(to_card::Message::Hello(hello))) => self.on_hello(&hello, coordinator),
            (true, Some(message)) => self.on_message(message, coordinator),
            (false, Some(_)) => self.leave("the agent's first message is not Hello"),
            (_, None) => self.leave("the agent sent a message that this version does not know"),
        }
    }

    /// Turns what the groups report into messages, and keeps up the signs of life.
    pub fn poll<P: Platform>(&mut self, coordinator: &mut Coordinator<P>, now: Nanoseconds) {
        while let Some(report) = coordinator.report() {
            self.on_report(report, coordinator, now);
        }
        if self.met && now >= self.next_heartbeat {
            self.next_heartbeat = now.plus(HEARTBEAT_NS);
            self.heartbeats += 1;
            self.send(to_host::Message::Heartbeat(Heartbeat { count: self.heartbeats }));
        }
    }

    /// Says goodbye: the card stops.
    pub fn shut_down(&mut self, reason: &str) {
        if self.met {
            self.leave(reason);
        }
    }

    fn send(&mut self, message: to_host::Message) {
        self.outgoing.push_back(message);
    }

    fn leave(&mut self, reason: &str) {
        self.send(to_host::Message::Goodbye(Goodbye { reason: reason.to_owned() }));
        self.closing = Some(reason.to_owned());
    }

    fn on_hello<P: Platform>(&mut self, hello: &Hello, coordinator: &mut Coordinator<P>) {
        match negotiate(&self.hello, hello) {
            Ok(agreed) => {
                self.met = true;
                self.agent_epoch = hello.epoch;
                self.send(to_host::Message::HelloAccepted(HelloAccepted {
                    version: agreed.version,
                    features: agreed.features,
                    hello: Some(self.hello.clone()),
                }));
                coordinator.report_resets(agreed.features & feature::RESETS != 0);
            }
            Err(refusal) => {
                let reason = refusal.to_string();
                self.send(to_host::Message::HelloRefused(HelloRefused {
                    reason: reason.clone(),
                    version_min: self.hello.version_min,
                    version_max: self.hello.version_max,
                    features_missing: self.hello.features_required & !hello.features,
                }));
                self.closing = Some(reason);
            }
        }
    }

    fn on_message<P: Platform>(
        &mut self,
        message: to_card::Message,
        coordinator: &mut Coordinator<P>,
    ) {
        match message {
            to_card::Message::Hello(_) => self.leave("the agent said Hello twice"),
            to_card::Message::RingSetup(setup) => {
                if let Err(reason) = self.on_ring_setup(&setup, coordinator) {
                    self.rings.clear();
                    self.send(to_host::Message::RingSetupRefused(RingSetupRefused { reason }));
                }
            }
            to_card::Message::Configuration(configuration) => {
                let generation = configuration.generation;
                match convert(&configuration) {
                    Ok(checked) => {
                        self.device_groups = configuration.device_groups;
                        coordinator.configure(checked);
                    }
                    Err(reason) => {
                        coordinator.refused(generation);
                        self.send(to_host::Message::ConfigurationRefused(ConfigurationRefused {
                            generation,
                            reason,
                        }));
                    }
                }
            }
            to_card::Message::StatisticsRequest(request) => {
                if self.statistics_request.is_none() {
                    self.statistics_request = Some(request.id);
                    coordinator.request_statistics(u64::from(request.id));
                }
            }
            to_card::Message::Reconciled(reconciled) => {
                let ring = self.rings.iter_mut().find(|ring| {
                    ring.id == reconciled.ring && ring.state == RingState::Reconciling
                });
                match ring {
                    Some(ring) => {
                        ring.state = RingState::Running;
                        coordinator.resume_ring(ring.group);
                    }
                    None => self.leave("the agent reconciled a ring that was not asked for"),
                }
            }
            to_card::Message::Revoke(revoke) => {
                self.revoking = Some(revoke.arena);
                self.rings.clear();
                coordinator.release_rings();
            }
            to_card::Message::NexusClose(close) => coordinator.close_nexus(close.nexus),
            to_card::Message::UnitResetDone(done) => {
                coordinator.reset_reported(done.gate, done.required_generation);
            }
            to_card::Message::Heartbeat(_) => {}
            to_card::Message::Goodbye(goodbye) => {
                self.closing = Some(format!("the agent said goodbye: {}", goodbye.reason));
            }
        }
    }

    fn on_ring_setup<P: Platform>(
        &mut self,
        setup: &RingSetup,
        coordinator: &mut Coordinator<P>,
    ) -> Result<(), String> {
        let blob = |id: u32| {
            setup
                .arenas
                .iter()
                .find(|arena| arena.id == id)
                .map(|arena| arena.blob.clone())
                .ok_or_else(|| format!("arena {id} is used by a ring but not described"))
        };
        self.offer += 1;
        let mut attachments = Vec::with_capacity(setup.rings.len());
        for ring in &setup.rings {
            let group = usize::try_from(ring.group).unwrap_or(usize::MAX);
            if group >= coordinator.groups() {
                return Err(format!(
                    "ring {} is for poll group {group}, but this card has {}; start the keeper with \
                     as many groups",
                    ring.id,
                    coordinator.groups()
                ));
            }
            let attachment = RingAttachment {
                offer: self.offer,
                ring_blob: blob(ring.arena)?,
                data_blob: blob(ring.data_arena)?,
                ring: u16::try_from(ring.id)
                    .map_err(|_| format!("ring {} is above 65535", ring.id))?,
                layout: RingLayout::new(ring.slots).ok_or_else(|| {
                    format!("ring {} has {} slots, not a power of two", ring.id, ring.slots)
                })?,
                submission_offset: ring.submission_offset,
                completion_offset: ring.completion_offset,
                data_offset: ring.data_offset,
                data_bytes: ring.data_bytes,
                submission_sequence: ring.submission_sequence,
                completion_sequence: ring.completion_sequence,
            };
            attachments.push((ring.id, group, attachment));
        }
        self.rings.clear();
        for (id, group, attachment) in attachments {
            self.rings.push(Ring { id, group, state: RingState::Attaching, in_flight: Vec::new() });
            coordinator.attach_ring(group, attachment);
        }
        Ok(())
    }

    fn on_report<P: Platform>(
        &mut self,
        report: Report,
        coordinator: &mut Coordinator<P>,
        now: Nanoseconds,
    ) {
        match report {
            Report::Configured { generation } => {
                if self.met {
                    let applied = ConfigurationApplied { generation };
                    self.send(to_host::Message::ConfigurationApplied(applied));
                }
            }
            Report::RingAttached { offer, ring, in_flight, error } => {
                // The groups answer every offer, those too that a newer agent has replaced.
                if offer == self.offer {
                    let states = unit_states(coordinator.configuration());
                    self.on_ring_attached(u32::from(ring), in_flight, error, states);
                }
            }
            Report::UnitReset { unit, gate } => {
                if self.met {
                    self.send(to_host::Message::UnitReset(UnitReset { unit, gate }));
                }
            }
            Report::RingsReleased => {
                if let Some(arena) = self.revoking.take() {
                    self.send(to_host::Message::Revoked(Revoked { arena }));
                }
            }
            Report::Statistics(groups) => {
                if let Some(id) = self.statistics_request.take().filter(|_| self.met) {
                    let statistics = crate::report::statistics(id, now, &groups);
                    self.send(to_host::Message::Statistics(statistics));
                }
            }
            Report::Event(event) => {
                if self.met && matches!(event, Event::RingCut { .. }) {
                    // The next channel offers the rings anew, and with that the way is tried anew.
                    self.end("the way to the host's memory was cut");
                }
                let message = on_event(event, coordinator, now);
                if let to_host::Message::NexusEvent(event) = &message {
                    self.track(event);
                }
                if self.met {
                    self.send(message);
                }
            }
        }
    }

    fn track(&mut self, event: &NexusEvent) {
        match event.kind() {
            NexusEventKind::Login => drop(self.nexuses.insert(event.nexus, event.clone())),
            NexusEventKind::Logout => drop(self.nexuses.remove(&event.nexus)),
            NexusEventKind::Rejected | NexusEventKind::Unspecified => {}
        }
    }

    fn on_ring_attached(
        &mut self,
        id: u32,
        in_flight: Vec<(u64, u32)>,
        error: Option<String>,
        unit_states: Vec<UnitState>,
    ) {
        let Some(ring) = self.rings.iter_mut().find(|ring| ring.id == id) else { return };
        if let Some(reason) = error {
            self.rings.clear();
            let refused = RingSetupRefused { reason };
            return self.send(to_host::Message::RingSetupRefused(refused));
        }
        ring.state = RingState::Reconciling;
        ring.in_flight = in_flight;
        if self.rings.iter().any(|ring| ring.state == RingState::Attaching) {
            return;
        }
        let device_groups = self.device_groups.clone();
        let ready = RingsReady { copied_arenas: Vec::new(), unit_states, device_groups };
        self.send(to_host::Message::RingsReady(ready));
        // Entries name their nexus, and a new agent parks those of nexuses it does not know.
        self.outgoing.extend(self.nexuses.values().cloned().map(to_host::Message::NexusEvent));
        let reconciles: Vec<Reconcile> = self
            .rings
            .iter_mut()
            .map(|ring| Reconcile {
                ring: ring.id,
                agent_epoch: self.previous_epoch,
                operations: std::mem::take(&mut ring.in_flight)
                    .into_iter()
                    .map(|(token, sequence)| InFlight { token, sequence })
                    .collect(),
            })
            .collect();
        for reconcile in reconciles {
            self.send(to_host::Message::Reconcile(reconcile));
        }
    }
}

/// What initiators changed in units that an agent executes: the card did not lose power with its agent, so
/// the mode parameters stay what they are (SPC-6), and a tray open.
fn unit_states(configuration: &Configuration) -> Vec<UnitState> {
    let units = configuration.units.iter().filter(|unit| unit.logical_unit.forwards);
    let states = units.map(|unit| UnitState {
        unit: unit.handle,
        software_write_protect: unit.logical_unit.software_write_protect,
        descriptor_sense: unit.logical_unit.descriptor_sense,
        no_medium: !unit.logical_unit.has_medium(),
        medium: unit.logical_unit.medium,
    });
    let is_changed = |state: &UnitState| {
        state.software_write_protect || state.descriptor_sense || state.no_medium
    };
    states.filter(is_changed).collect()
}

fn on_event<P: Platform>(
    event: Event,
    coordinator: &Coordinator<P>,
    now: Nanoseconds,
) -> to_host::Message {
    let log = |level: EventLevel, code: &str, text: String| {
        to_host::Message::Event(control::Event {
            level: level.into(),
            code: code.to_owned(),
            text,
            time_ns: now.0,
        })
    };
    match event {
        Event::Login { nexus, initiator, target, peer } => {
            to_host::Message::NexusEvent(NexusEvent {
                kind: NexusEventKind::Login.into(),
                nexus,
                nexus_generation: nexus,
                target,
                initiator_port_id: initiator.0.to_vec(),
                peer: peer.as_str().to_owned(),
                poll_group: nexus & 0xff,
                channels: 1,
                ..NexusEvent::default()
            })
        }
        Event::Logout { nexus } => to_host::Message::NexusEvent(NexusEvent {
            kind: NexusEventKind::Logout.into(),
            nexus,
            nexus_generation: nexus,
            reason: "its last channel is gone".to_owned(),
            ..NexusEvent::default()
        }),
        Event::Rejected { peer, initiator, reason, text } => {
            let target = coordinator.configuration().targets.first().map_or(0, |t| t.handle);
            to_host::Message::NexusEvent(NexusEvent {
                kind: NexusEventKind::Rejected.into(),
                target,
                initiator_port_id: initiator.map(|port| port.0.to_vec()).unwrap_or_default(),
                peer: peer.as_str().to_owned(),
                reject_code: reason.code(),
                reason: text,
                ..NexusEvent::default()
            })
        }
        Event::ChannelClosed { nexus, reason } => log(
            EventLevel::Info,
            "channel-closed",
            format!("a channel of nexus {nexus} was closed: {}", reason.text()),
        ),
        Event::RingFault { group, text } => log(
            EventLevel::Error,
            "ring-fault",
            format!("the ring of poll group {group} was closed: {text}"),
        ),
        Event::RingCut { group } => log(
            EventLevel::Warning,
            "ring-cut",
            format!("the ring of poll group {group} rests: the way to the host's memory was cut"),
        ),
        Event::DeviceFatal => log(
            EventLevel::Error,
            "device-fatal",
            "the HCA reported a fatal error; every channel is lost".to_owned(),
        ),
    }
}

/// The agent's configuration as the poll groups use it.
fn convert(configuration: &control::Configuration) -> Result<Configuration, String> {
    let checked =
        checked::Configuration::try_from(configuration).map_err(|invalid| invalid.to_string())?;
    Configuration::try_from(checked)
}
