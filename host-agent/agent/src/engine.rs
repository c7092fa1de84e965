//! The engine: one thread that owns the core, the devices and the host's ends of all rings, and carries out what the
//! core decides.
//!
//! One thread for all rings, rather than one for each with a lock around the core between them: devices belong to one
//! thread, their I/O is the kernel's to spread, and a command costs neither a lock nor a wake-up of another thread.
//!
//! It spins while there is work, then sleeps on its descriptors. Hints may be lost, so it never sleeps longer than 1 ms
//! while anything is under way or was a second ago, and looks at the rings 50 times a second when nothing is.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use lunar_core::reservations::Reservations;
use lunar_core::ring::{ArenaWindow, RingPair};
use lunar_core::{
    ArenaGeometry, COPY_ARENA, COPY_ARENA_BYTES, Configuration, Core, CoreConfig, DataRange,
    DeviceHandle, Effect, Level, Limits, LinkState, LogEvent, OperationId, Recovered, RingGeometry,
    UnitConfiguration,
};
use lunar_handlers::{Arena, Ended, HostBuffer, Outcome};
use lunar_keeper::Offer;
use lunar_keeper::client::HintLines;
use lunar_keeper::layout::{DATA_ARENA, RING_ARENA};
use lunar_mgmt::Tree;
use lunar_mgmt::snapshot::{self, Handles};
use lunar_mgmt::tree::{AccessState, Device, Handler};
use lunar_offload_proto::control::{self, to_host};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tracing::{debug, error, info, warn};

use crate::api::{SOFTWARE, wire};
use crate::devices::{self, Open};
use crate::epoch::{self, Notes};
use crate::line::{EngineInbox, Question, ToControl, ToEngine};
use crate::pr_files;
use crate::show;

/// Entries taken from one ring before the others are looked at.
const RING_BUDGET: usize = 64;

/// Longest sleep while something is under way, or was within [`RECENT_NS`].
const SLEEP_BUSY_NS: u64 = 1_000_000;

/// Longest sleep otherwise.
const SLEEP_IDLE_NS: u64 = 20_000_000;

/// How long after the last work the engine still sleeps lightly.
const RECENT_NS: u64 = 1_000_000_000;

/// How long the card may take to send its counters.
const STATISTICS_PATIENCE_NS: u64 = 2_000_000_000;

/// How long a change of access states waits for the card to have made it.
const ACCESS_PATIENCE_NS: u64 = 5_000_000_000;

/// How long a stop waits for the devices to end what they have.
const STOP_PATIENCE_NS: u64 = 5_000_000_000;

/// What an engine is made from.
pub(crate) struct Parts {
    pub tree: Tree,
    pub offer: Offer,
    pub epoch: u64,
    pub notes: Notes,
    pub pr_dir: PathBuf,
    pub spin: Duration,
    pub inbox: EngineInbox,
    pub outbound: UnboundedSender<ToControl>,
}

pub(crate) struct Engine {
    core: Core,
    tree: Tree,
    handles: Handles,
    configuration: control::Configuration,
    devices: Vec<Open>,
    /// Discs that were taken out while something was under way on them.
    leaving: Vec<Open>,
    /// In the order of `devices`.
    device_names: Vec<String>,
    arena: Arena,
    /// What EXTENDED COPY moves its data through.
    copy_arena: Arena,
    rings: Vec<RingPair<ArenaWindow>>,
    hints: Vec<HintLines>,
    pr_keeper: pr_files::Keeper,
    notes: Notes,
    notes_file: OwnedFd,
    inbox: EngineInbox,
    outbound: UnboundedSender<ToControl>,
    connection: u64,
    card: Card,
    asking: Vec<Asking>,
    setting: Vec<Setting>,
    reserving: Vec<Reserving>,
    next_reserving: u64,
    last_request: u32,
    ended: Vec<Ended>,
    start: Instant,
    spin_ns: u64,
    stop_by_ns: Option<u64>,
}

/// What the card said of itself on this connection.
#[derive(Default)]
struct Card {
    software: String,
    epoch: u64,
    refused: String,
}

/// A `Show` that waits for the card's counters.
struct Asking {
    request: u32,
    until_ns: u64,
    answer: oneshot::Sender<Box<wire::ShowReply>>,
}

/// A `SetAlua` that waits for the card.
struct Setting {
    device_group: String,
    target_group: String,
    generation: u32,
    until_ns: u64,
    answer: oneshot::Sender<Result<wire::SetAluaReply, String>>,
}

/// A `ChangeReservations` that waits for the disk and the card.
struct Reserving {
    id: u64,
    unit: u32,
    until_ns: u64,
    answer: oneshot::Sender<Result<wire::ReservationsReply, String>>,
}

impl Engine {
    /// Opens the devices, takes over the rings as the last agent left them, and sets the configuration.
    pub(crate) fn new(parts: Parts) -> anyhow::Result<Self> {
        let Parts { tree, offer, epoch, notes, pr_dir, spin, inbox, outbound } = parts;
        let layout = offer.layout;
        let opened = devices::open_all(&tree)?;
        let mut handles = Handles::default();
        let media = devices::media(&tree, &opened);
        let configuration = snapshot::configuration(&tree, &mut handles, &media, 0)?;
        let map = |file: &OwnedFd, bytes: u64| -> anyhow::Result<Arena> {
            Ok(Arena::from_fd(file.as_fd(), usize::try_from(bytes)?)?)
        };
        let arena = map(&offer.arena, layout.arena_bytes()).context("the data arena")?;
        let ring_arena = map(&offer.rings, layout.rings_bytes()).context("the rings")?;

        let mut rings = Vec::new();
        let mut recoveries = Vec::new();
        let mut faults = Vec::new();
        for group in 0..layout.groups() {
            let index = u16::try_from(group)?;
            let window = |offset| {
                ArenaWindow::new(ring_arena.clone(), offset, layout.ring())
                    .context("a ring lies outside the keeper's memory")
            };
            let submission = window(layout.submission_offset(group))?;
            let completion = window(layout.completion_offset(group))?;
            let recovered =
                RingPair::recover(index, layout.ring(), submission.clone(), completion.clone());
            match recovered {
                Ok((pair, recovery)) => {
                    rings.push(pair);
                    recoveries.push(recovery);
                }
                Err(fault) => {
                    rings.push(RingPair::new(index, layout.ring(), submission, completion));
                    recoveries.push(lunar_core::RingRecovery::default());
                    faults.push((index, fault));
                }
            }
        }
        let used = notes.card_epoch != 0;
        let recovered =
            used.then_some(Recovered { card_epoch: notes.card_epoch, rings: recoveries });
        let mut core = Core::new(CoreConfig {
            software: SOFTWARE.to_owned(),
            epoch,
            boot_id: epoch::boot_id(),
            arenas: arenas(&offer),
            rings: geometries(&offer)?,
            configuration_generation: notes.configuration_generation,
            recovered,
            limits: Limits::default(),
        });
        for (ring, fault) in faults.iter().filter(|_| used) {
            core.on_ring_fault(*ring, fault);
        }
        let (open_devices, device_names) = in_order(opened, &configuration);
        let pr_path = |name: &String| pr_files::path(&tree, name, &pr_dir);
        let all_paths: Vec<PathBuf> = device_names.iter().map(pr_path).collect();
        let named =
            device_names.iter().map(String::as_str).zip(all_paths.iter().map(PathBuf::as_path));
        pr_files::check_apart(&named.collect::<Vec<_>>()).map_err(anyhow::Error::msg)?;
        let mut pr_paths = BTreeMap::new();
        for (name, path) in device_names.iter().zip(all_paths) {
            let Some(unit) = handles.unit(name) else { continue };
            core.restore_reservations(unit, pr_files::restore(&path, name));
            pr_paths.insert(unit, path);
        }
        core.set_configuration(with_devices(&configuration, &device_names), 0)?;
        let pr_keeper = pr_files::Keeper::start(pr_paths, inbox.wake())?;
        let notes = Notes { agent_epoch: epoch, ..notes };
        notes.store(&offer.notes)?;
        Ok(Self {
            core,
            tree,
            handles,
            configuration,
            devices: open_devices,
            leaving: Vec::new(),
            device_names,
            arena,
            copy_arena: Arena::anonymous(COPY_ARENA_BYTES).context("memory for EXTENDED COPY")?,
            rings,
            hints: offer.hints,
            pr_keeper,
            notes,
            notes_file: offer.notes,
            inbox,
            outbound,
            connection: 0,
            card: Card::default(),
            asking: Vec::new(),
            setting: Vec::new(),
            reserving: Vec::new(),
            next_reserving: 1,
            last_request: 0,
            ended: Vec::new(),
            start: Instant::now(),
            spin_ns: u64::try_from(spin.as_nanos()).unwrap_or(u64::MAX),
            stop_by_ns: None,
        })
    }

    /// Runs until it is told to stop and the devices have ended what they had.
    pub(crate) fn run(mut self) {
        let mut busy_ns = 0;
        loop {
            let now_ns = self.now_ns();
            let busy = self.turn(now_ns);
            if self.stop_by_ns.is_some_and(|by_ns| self.core.running() == 0 || now_ns >= by_ns) {
                return self.end(now_ns);
            }
            if busy {
                busy_ns = now_ns;
            } else if now_ns.saturating_sub(busy_ns) < self.spin_ns {
                std::hint::spin_loop();
            } else {
                self.sleep(now_ns, busy_ns);
            }
        }
    }

    /// Everything once; whether there was anything.
    fn turn(&mut self, now_ns: u64) -> bool {
        let mut busy = false;
        while let Some(message) = self.inbox.next() {
            busy = true;
            let stop = matches!(message, ToEngine::Stop);
            self.take(message, now_ns);
            if stop {
                break;
            }
        }
        if self.core.next_deadline().is_some_and(|due_ns| due_ns <= now_ns) {
            self.core.on_tick(now_ns);
        }
        // A ring that was given to another card is emptied before it is looked at.
        busy |= self.carry_out(now_ns);
        // What is taken while stopping could not be ended: the next agent takes it.
        if self.stop_by_ns.is_none() {
            for ring in &mut self.rings {
                busy |= ring.poll(&mut self.core, RING_BUDGET, now_ns) > 0;
            }
        }
        while let Some((unit, keep, result)) = self.pr_keeper.next() {
            busy = true;
            self.core.on_reservations_kept(unit, keep, result);
        }
        busy |= self.carry_out(now_ns);
        busy |= self.poll_devices(now_ns);
        busy |= self.carry_out(now_ns);
        for (ring, hints) in self.rings.iter_mut().zip(&self.hints) {
            if ring.publish() {
                // A full counter means that the card is being woken already.
                let _ = rustix::io::write(&hints.to_card, &1_u64.to_ne_bytes());
            }
        }
        self.give_up_on_counters(now_ns);
        self.answer_settings(now_ns);
        self.give_up_on_reserving(now_ns);
        busy
    }

    fn take(&mut self, message: ToEngine, now_ns: u64) {
        match message {
            ToEngine::CardConnected { connection } => {
                // What was said before is for the connection before, which may have come and gone in
                // this same turn.
                self.carry_out(now_ns);
                self.connection = connection;
                self.card = Card::default();
                self.core.on_control_connected(now_ns);
            }
            ToEngine::FromCard(message) => {
                self.note(message.message.as_ref());
                self.core.on_control(*message, now_ns);
            }
            ToEngine::CardLost { connection, reason } if connection == self.connection => {
                self.core.on_control_lost(now_ns);
                for asking in std::mem::take(&mut self.asking) {
                    self.answer_show(asking.answer, Err(&format!("the card is gone: {reason}")));
                }
            }
            ToEngine::CardLost { .. } => {}
            ToEngine::Exported(offer) => self.core.exported(arenas(&offer)),
            ToEngine::Ask(Question::Health(answer)) => {
                // Whoever asked may be gone by now.
                let _ = answer.send(self.health());
            }
            ToEngine::Ask(Question::Show(answer)) => self.show(answer, now_ns),
            ToEngine::Ask(Question::ResyncSize(device, answer)) => {
                let _ = answer.send(self.resync_size(&device, now_ns));
            }
            ToEngine::Ask(Question::ChangeMedium(change, answer)) => {
                let _ = answer.send(self.change_medium(&change, now_ns));
            }
            ToEngine::Ask(Question::Alua(answer)) => {
                let _ = answer.send(self.alua());
            }
            ToEngine::Ask(Question::SetAlua(request, answer)) => {
                self.set_alua(request, answer, now_ns);
            }
            ToEngine::Ask(Question::Reservations(device, answer)) => {
                let _ = answer.send(self.reserved_unit(&device).map(|unit| self.told(unit)));
            }
            ToEngine::Ask(Question::ChangeReservations(request, answer)) => {
                self.change_reservations(&request, answer, now_ns);
            }
            ToEngine::Stop => {
                let stop_by_ns = now_ns.saturating_add(STOP_PATIENCE_NS);
                self.stop_by_ns.get_or_insert(stop_by_ns);
            }
        }
    }

    /// Remembers what `Show` tells of the card. What a message means is the core's business.
    fn note(&mut self, message: Option<&to_host::Message>) {
        match message {
            Some(to_host::Message::HelloAccepted(accepted)) => {
                if let Some(hello) = &accepted.hello {
                    self.card.software.clone_from(&hello.software);
                    self.card.epoch = hello.epoch;
                }
            }
            Some(to_host::Message::ConfigurationRefused(refused)) => {
                self.card.refused.clone_from(&refused.reason);
            }
            Some(to_host::Message::ConfigurationApplied(_)) => self.card.refused.clear(),
            _ => {}
        }
    }

    fn carry_out(&mut self, now_ns: u64) -> bool {
        let mut busy = false;
        while let Some(effect) = self.core.poll_effect() {
            busy = true;
            match effect {
                Effect::Execute { operation, device, request, data } => {
                    self.execute(operation, device, request, data, now_ns);
                }
                Effect::FetchParameters { command, data } => {
                    let mut list = vec![0; usize::try_from(data.length).unwrap_or(0)];
                    // A range that the memory has not is no parameter list.
                    let there = self.window(data).is_some_and(|window| window.read(0, &mut list));
                    self.core.on_parameters(&command, if there { &list } else { &[] });
                }
                Effect::StoreParameters { data, bytes } => {
                    let stored = self.window(data).is_some_and(|window| window.write(0, &bytes));
                    debug_assert!(stored, "the core checked the range");
                }
                Effect::Complete { ring, entry, side } => {
                    if let Some(ring) = self.rings.get_mut(usize::from(ring)) {
                        ring.complete(&mut self.core, entry, side.as_deref());
                    }
                }
                Effect::Cancel { operation, device } => {
                    if let Some(device) = device_mut(&mut self.devices, device) {
                        let answer = device.cancel(operation.to_request_id());
                        self.core.on_cancel_answer(operation, answer);
                    }
                }
                Effect::SendControl(message) => {
                    let connection = self.connection;
                    // Without a control task the agent is ending anyway.
                    let _ = self.outbound.send(ToControl::Send { connection, message });
                }
                Effect::CloseControl { reason } => {
                    let connection = self.connection;
                    let _ = self.outbound.send(ToControl::Close { connection, reason });
                }
                Effect::CloseRing { ring, reason } => error!(ring, "ring closed: {reason}"),
                Effect::ResetRing { ring } => {
                    if let Some(ring) = self.rings.get_mut(usize::from(ring)) {
                        ring.reset();
                    }
                }
                Effect::RememberCard { epoch, configuration_generation } => {
                    self.remember(epoch, configuration_generation);
                }
                Effect::KeepReservations { unit, keep, record } => {
                    self.pr_keeper.keep(unit, keep, record);
                }
                Effect::ReservationsChanged { id, result } => {
                    self.answer_reserving(id, result);
                }
                Effect::ArenaRevoked { arena } => info!(arena, "the card uses the arena no more"),
                Effect::Statistics(statistics) => self.on_statistics(&statistics),
                Effect::Log(event) => log(&event),
            }
        }
        busy
    }

    fn execute(
        &mut self,
        operation: OperationId,
        device: DeviceHandle,
        request: lunar_handlers::Request,
        data: Option<DataRange>,
        now_ns: u64,
    ) {
        let window = data.map(|range| self.window(range));
        let device = device_mut(&mut self.devices, device);
        match (window, device) {
            // A range that the core let through and the memory has not.
            (Some(None), _) | (_, None) => {
                self.core.on_outcome(operation, Outcome::HardwareError, now_ns);
            }
            (window, Some(device)) => {
                device.submit(operation.to_request_id(), request, window.flatten());
            }
        }
    }

    fn window(&self, range: DataRange) -> Option<HostBuffer> {
        match range.arena {
            DATA_ARENA => self.arena.window(range.offset, range.length),
            COPY_ARENA => self.copy_arena.window(range.offset, range.length),
            _ => None,
        }
    }

    fn poll_devices(&mut self, now_ns: u64) -> bool {
        for device in self.devices.iter_mut().filter(|device| device.outstanding() > 0) {
            device.poll(&mut self.ended);
        }
        for device in &mut self.leaving {
            device.poll(&mut self.ended);
        }
        self.leaving.retain(|device| device.outstanding() > 0);
        let busy = !self.ended.is_empty();
        for (id, outcome) in self.ended.drain(..) {
            self.core.on_outcome(OperationId::from_request_id(id), outcome, now_ns);
        }
        busy
    }

    fn remember(&mut self, card_epoch: u64, configuration_generation: u32) {
        self.notes = Notes { card_epoch, configuration_generation, ..self.notes };
        if let Err(error) = self.notes.store(&self.notes_file) {
            error!("what the next agent needs cannot be kept: {error:#}");
        }
    }

    fn health(&self) -> wire::HealthReply {
        let (sent, applied) =
            (self.core.configuration_generation(), self.core.applied_generation());
        let reason = match self.core.link_state() {
            LinkState::Down | LinkState::Closing => "no card is connected".to_owned(),
            LinkState::HelloSent | LinkState::RingsOffered => "the card is being set up".to_owned(),
            LinkState::HoldingBack => "operations of the card's last start are not over".to_owned(),
            LinkState::RingsRefused => "the card cannot use the rings; see the log".to_owned(),
            LinkState::Ready if !self.card.refused.is_empty() => {
                format!("the card refused the configuration: {}", self.card.refused)
            }
            LinkState::Ready if sent != applied => {
                format!("the card has not applied configuration {sent} yet")
            }
            LinkState::Ready => String::new(),
        };
        wire::HealthReply { serving: reason.is_empty(), reason }
    }

    /// Looks again how large the device called `name` is. What is under way was checked against the old
    /// size and ends as the device sees fit.
    fn resync_size(&mut self, name: &str, now_ns: u64) -> Result<wire::ResyncSizeReply, String> {
        let Some(at) = self.device_names.iter().position(|known| known == name) else {
            let known = self.device_names.join(", ");
            return Err(format!(
                "device {name} is not one that this agent executes; these are: {known}"
            ));
        };
        let device =
            self.devices.get_mut(at).ok_or_else(|| format!("device {name} is not open"))?;
        let blocks_before = device.geometry().blocks;
        let warnings = device.resync_size().map_err(|error| error.to_string())?;
        let blocks = device.geometry().blocks;
        if blocks != blocks_before {
            let units = self.configuration.units.iter_mut().filter(|unit| unit.name == name);
            units.for_each(|unit| unit.blocks = blocks);
            let configuration = with_devices(&self.configuration, &self.device_names);
            let changed = self.core.set_configuration(configuration, now_ns);
            changed.map_err(|error| error.to_string())?;
            info!(device = name, blocks_before, blocks, "the size changed");
        }
        Ok(wire::ResyncSizeReply { blocks, blocks_before, warnings })
    }

    /// Puts another disc into a CD/DVD drive, or takes the disc out. What is under way ends with the disc
    /// that it was for.
    fn change_medium(
        &mut self,
        change: &wire::ChangeMediumRequest,
        now_ns: u64,
    ) -> Result<wire::ChangeMediumReply, String> {
        let name = change.device.as_str();
        let at = self.device_names.iter().position(|known| known == name);
        let device = self.tree.devices.get_mut(name).filter(|own| own.handler == Handler::Cdrom);
        let (Some(at), Some(device), Some(handle)) = (at, device, self.handles.unit(name)) else {
            return Err(format!("device {name} is no vdisk_cdrom, so its medium stays"));
        };
        if !change.filename.is_empty() && !change.filename.starts_with('/') {
            let filename = &change.filename;
            return Err(format!(
                "filename `{filename}` is not absolute: give the path from the root"
            ));
        }
        if let Some((nexus, peer)) = self.core.removal_prevented_by(handle) {
            return Err(format!(
                "device {name}: nexus {nexus} ({peer}) prevents the removal of the medium; unmount it there"
            ));
        }
        let filename = Some(change.filename.clone()).filter(|filename| !filename.is_empty());
        let changed = Device { filename, ..device.clone() };
        let (open, warnings) =
            devices::open(name, &changed).map_err(|error| format!("{error:#}"))?;
        let place = self.devices.get_mut(at).ok_or_else(|| format!("device {name} is not open"))?;
        let blocks = open.geometry().blocks;
        let before = std::mem::replace(place, open);
        if before.outstanding() > 0 {
            self.leaving.push(before);
        }
        for unit in self.configuration.units.iter_mut().filter(|unit| unit.handle == handle) {
            unit.blocks = blocks;
            unit.medium = devices::medium_id(&changed);
        }
        *device = changed;
        self.core.close_tray(handle);
        let configuration = with_devices(&self.configuration, &self.device_names);
        let taken = self.core.set_configuration(configuration, now_ns);
        taken.map_err(|error| error.to_string())?;
        info!(device = name, filename = change.filename, blocks, "the medium changed");
        Ok(wire::ChangeMediumReply { blocks, warnings })
    }

    fn alua(&self) -> wire::AluaReply {
        show::alua(&self.tree, &self.handles, self.core.device_groups())
    }

    /// Changes the state of a target group; the answer waits for the card. `scst.conf` keeps what it says.
    fn set_alua(
        &mut self,
        request: wire::SetAluaRequest,
        answer: oneshot::Sender<Result<wire::SetAluaReply, String>>,
        now_ns: u64,
    ) {
        let wire::SetAluaRequest { device_group, target_group, state, preferred } = request;
        let unknown = |name: &String| {
            format!("state `{name}` is not known; there are: {}", AccessState::names())
        };
        let state = state.map(|name| AccessState::from_name(&name).ok_or_else(|| unknown(&name)));
        let changed = state.transpose().and_then(|state| {
            self.core.set_target_port_group(&device_group, &target_group, state, preferred)
        });
        match changed {
            // Whoever asked may be gone by now.
            Err(reason) => drop(answer.send(Err(reason))),
            Ok(generation) => {
                let until_ns = now_ns.saturating_add(ACCESS_PATIENCE_NS);
                let setting = Setting { device_group, target_group, generation, until_ns, answer };
                self.setting.push(setting);
            }
        }
    }

    fn answer_settings(&mut self, now_ns: u64) {
        let applied = self.core.applied_generation();
        let met = self.met();
        let over = |setting: &mut Setting| {
            setting.generation <= applied || setting.until_ns <= now_ns || !met
        };
        let over: Vec<_> = self.setting.extract_if(.., over).collect();
        for Setting { device_group, target_group, generation, answer, .. } in over {
            let groups = self.alua().device_groups.into_iter();
            let mut groups = groups.filter(|group| group.name == device_group);
            let own = groups.next().map(|group| group.target_groups.into_iter());
            let own = own.and_then(|mut own| own.find(|own| own.name == target_group));
            let in_force = met && generation <= applied;
            let _ = answer.send(Ok(wire::SetAluaReply { target_group: own, in_force }));
        }
    }

    /// The unit of a device that has reservations.
    fn reserved_unit(&self, name: &str) -> Result<u32, String> {
        let known = self.device_names.iter().any(|known| known == name);
        self.handles.unit(name).filter(|_| known).ok_or_else(|| {
            let known = self.device_names.join(", ");
            format!("device {name} is not one that this agent executes; these are: {known}")
        })
    }

    fn told(&self, unit: u32) -> wire::ReservationsReply {
        let none = Reservations::default();
        pr_files::told(self.core.reservations(unit).unwrap_or(&none))
    }

    /// Clears or replaces a device's reservations; the answer waits for the disk and the card.
    fn change_reservations(
        &mut self,
        request: &wire::ChangeReservationsRequest,
        answer: oneshot::Sender<Result<wire::ReservationsReply, String>>,
        now_ns: u64,
    ) {
        let wire::ChangeReservationsRequest { device, import } = request;
        let state = match import.as_slice() {
            [] => Ok(None),
            bytes => match pr_files::import(bytes) {
                Ok(state) => Ok(Some(state)),
                Err(reason) => Err(format!("device {device}: {reason}")),
            },
        };
        let (unit, state) = match self.reserved_unit(device).and_then(|unit| Ok((unit, state?))) {
            Ok(found) => found,
            // Whoever asked may be gone by now.
            Err(reason) => return drop(answer.send(Err(reason))),
        };
        let id = self.next_reserving;
        self.next_reserving = id.wrapping_add(1);
        let until_ns = now_ns.saturating_add(ACCESS_PATIENCE_NS);
        self.reserving.push(Reserving { id, unit, until_ns, answer });
        info!(device, import = state.is_some(), "the management changes its reservations");
        match state {
            Some(state) => self.core.replace_reservations(unit, id, state),
            None => self.core.clear_reservations(unit, id),
        }
    }

    fn answer_reserving(&mut self, id: u64, result: Result<(), String>) {
        if let Some(at) = self.reserving.iter().position(|waiting| waiting.id == id) {
            let Reserving { unit, answer, .. } = self.reserving.swap_remove(at);
            let told = self.told(unit);
            let name = self.handles.unit_name(unit).unwrap_or("(removed)");
            let reply = result.map(|()| wire::ReservationsReply { in_force: true, ..told });
            let _ = answer.send(reply.map_err(|reason| format!("device {name}: {reason}")));
        }
    }

    fn give_up_on_reserving(&mut self, now_ns: u64) {
        while let Some(at) = self.reserving.iter().position(|one| one.until_ns <= now_ns) {
            let Reserving { unit, answer, .. } = self.reserving.swap_remove(at);
            let _ = answer.send(Ok(self.told(unit)));
        }
    }

    fn met(&self) -> bool {
        !matches!(
            self.core.link_state(),
            LinkState::Down | LinkState::HelloSent | LinkState::Closing
        )
    }

    fn show(&mut self, answer: oneshot::Sender<Box<wire::ShowReply>>, now_ns: u64) {
        if !self.met() {
            return self.answer_show(answer, Err("no card is connected"));
        }
        self.last_request = self.last_request.wrapping_add(1);
        let request = self.last_request;
        self.core.request_statistics(request, false);
        let until_ns = now_ns.saturating_add(STATISTICS_PATIENCE_NS);
        self.asking.push(Asking { request, until_ns, answer });
    }

    fn on_statistics(&mut self, statistics: &control::Statistics) {
        if let Some(at) = self.asking.iter().position(|asking| asking.request == statistics.id) {
            let asking = self.asking.swap_remove(at);
            self.answer_show(asking.answer, Ok(statistics));
        }
    }

    fn give_up_on_counters(&mut self, now_ns: u64) {
        while let Some(at) = self.asking.iter().position(|asking| asking.until_ns <= now_ns) {
            let asking = self.asking.swap_remove(at);
            let seconds = STATISTICS_PATIENCE_NS / 1_000_000_000;
            let reason = format!("the card did not send its counters within {seconds} s");
            self.answer_show(asking.answer, Err(&reason));
        }
    }

    fn answer_show(
        &self,
        answer: oneshot::Sender<Box<wire::ShowReply>>,
        statistics: Result<&control::Statistics, &str>,
    ) {
        let card = wire::Card {
            connected: self.met(),
            software: self.card.software.clone(),
            epoch: self.card.epoch,
            configuration_generation: self.core.configuration_generation(),
            applied_generation: self.core.applied_generation(),
            refused: self.card.refused.clone(),
            uptime_ns: 0,
        };
        let reply = show::reply(&show::Sources {
            card,
            tree: &self.tree,
            handles: &self.handles,
            configuration: &self.configuration,
            statistics,
        });
        // Whoever asked may be gone by now.
        let _ = answer.send(Box::new(reply));
    }

    /// Sleeps until a descriptor says that there is something, or the bound is over.
    fn sleep(&mut self, now_ns: u64, busy_ns: u64) {
        let under_way = self.core.running() > 0 || now_ns.saturating_sub(busy_ns) < RECENT_NS;
        let bound_ns = if under_way { SLEEP_BUSY_NS } else { SLEEP_IDLE_NS };
        let due_ns = self.core.next_deadline().map_or(bound_ns, |due| due.saturating_sub(now_ns));
        let sleep_ns = bound_ns.min(due_ns);
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::try_from(sleep_ns).unwrap_or(0) };
        let mut waits = vec![PollFd::from_borrowed_fd(self.inbox.fd(), PollFlags::IN)];
        waits.extend(self.hints.iter().map(|hints| PollFd::new(&hints.to_host, PollFlags::IN)));
        let descriptors = self.devices.iter().filter(|device| device.outstanding() > 0);
        let descriptors = descriptors.filter_map(|device| device.event_fd());
        waits.extend(descriptors.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        // An interrupted or failed wait is a short sleep: everything is looked at anyway.
        let _ = poll(&mut waits, Some(&timeout));
        let mut count = [0; 8];
        let lines = std::iter::once(self.inbox.fd());
        for line in lines.chain(self.hints.iter().map(|hints| hints.to_host.as_fd())) {
            let _ = rustix::io::read(line, &mut count);
        }
    }

    fn end(mut self, now_ns: u64) {
        let running = self.core.running();
        if running > 0 {
            warn!(running, "stopping although devices have not ended these operations");
        }
        self.core.shut_down("the agent stops");
        self.carry_out(now_ns);
        for ring in &mut self.rings {
            ring.publish();
        }
        info!("the agent stops; the keeper holds the rings for the next one");
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

fn device_mut(devices: &mut [Open], device: DeviceHandle) -> Option<&mut Open> {
    devices.get_mut(usize::try_from(device.0).ok()?)
}

fn arenas(offer: &Offer) -> Vec<ArenaGeometry> {
    let lengths =
        [(DATA_ARENA, offer.layout.arena_bytes()), (RING_ARENA, offer.layout.rings_bytes())];
    let arena = |(id, bytes)| {
        let blob = offer.export_blob(id)?.to_vec();
        Some(ArenaGeometry { id, blob, bytes })
    };
    lengths.into_iter().filter_map(arena).collect()
}

fn geometries(offer: &Offer) -> anyhow::Result<Vec<RingGeometry>> {
    let layout = offer.layout;
    let geometry = |group| RingGeometry {
        group,
        arena: RING_ARENA,
        submission_offset: layout.submission_offset(group),
        completion_offset: layout.completion_offset(group),
        layout: layout.ring(),
        data_arena: DATA_ARENA,
        data_offset: layout.data_offset(group),
        data_bytes: layout.data_bytes(),
    };
    ensure!(layout.groups() > 0, "the keeper holds no rings");
    Ok((0..layout.groups()).map(geometry).collect())
}

/// The devices by handle, and their names.
fn in_order(
    mut opened: BTreeMap<String, Open>,
    configuration: &control::Configuration,
) -> (Vec<Open>, Vec<String>) {
    let units = configuration.units.iter();
    units
        .filter_map(|unit| opened.remove_entry(&unit.name))
        .map(|(name, open)| (open, name))
        .unzip()
}

/// The configuration with each unit's handler: the place of its name among `devices`.
fn with_devices(configuration: &control::Configuration, devices: &[String]) -> Configuration {
    let unit = |unit: &control::LogicalUnit| {
        let at = devices.iter().position(|name| *name == unit.name);
        let device = at.and_then(|at| u32::try_from(at).ok()).map(DeviceHandle);
        UnitConfiguration { unit: unit.clone(), device }
    };
    let units = configuration.units.iter().map(unit).collect();
    let targets = configuration.targets.clone();
    Configuration { units, targets, device_groups: configuration.device_groups.clone() }
}

fn log(event: &LogEvent) {
    let (code, text) = (event.code.as_ref(), event.text.as_str());
    match event.level {
        Level::Debug => debug!(code, "{text}"),
        Level::Info => info!(code, "{text}"),
        Level::Warning => warn!(code, "{text}"),
        Level::Error => error!(code, "{text}"),
    }
}
