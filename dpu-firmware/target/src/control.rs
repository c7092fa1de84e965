//! What the coordinator asks of a poll group: configuration, statistics, the ring's coming and
//! going; and the timers. Nothing here is on a command's way.

use std::sync::Arc;

use lunar_backend::ring::{RingBackend, RingSetup};
use lunar_dma::sgv::{Buffer, Placement, SgvCache, Share};
use lunar_platform::{HostArena, Memory, Nanoseconds, Platform};
use lunar_scsi::alua::AccessState;
use lunar_scsi::device_server::ModeParameters;
use lunar_scsi::opcodes::opcode;
use lunar_scsi::reservations::Access;
use lunar_scsi::sense::Sense;
use lunar_scsi::status::Status;
use lunar_scsi::unit::LogicalUnit;
use lunar_scsi::unit_attention::UnitAttention;

use crate::configuration::{Configuration, TRANSFER_BYTES_MAX, Unit};
use crate::message::{CloseReason, Event, FromGroup, RingAttachment, ToGroup};
use crate::mutant::{self, Mutant};
use crate::nexus::NexusLun;
use crate::poll_group::{PollGroup, UnitShard, Units, closed};
use crate::statistics::{GroupStatistics, NexusStatistics, RingShard, UnitStatistics};
use crate::task::{Batch, State, Task, Work};
use crate::trace::Point;

/// A configuration that is being brought in.
pub(crate) struct Change {
    configuration: Arc<Configuration>,
    /// Handles of units that are removed or get another backing: no task of theirs may be in
    /// progress when the change is made. The others never notice.
    drains: Vec<u32>,
    /// Units whose access was narrowed: writes decided before must be over before the change is
    /// reported as made.
    fences: Vec<(u32, usize)>,
    /// Nexuses (places) and units all of whose commands are aborted, and must be over too.
    aborts: Vec<(u32, u32)>,
    /// When channels that hold those up are torn down.
    deadline: Nanoseconds,
    applied: bool,
}

impl<P: Platform> PollGroup<P> {
    pub(crate) fn on_message(&mut self, message: ToGroup<P>) {
        match message {
            ToGroup::Login { connection, request, peer } => {
                self.on_login(connection, request, peer);
            }
            ToGroup::Configure(configuration) => self.configure(configuration),
            ToGroup::CloseGate { gate, unit, cause } => self.close_gate(gate, unit, cause),
            ToGroup::OpenGate { gate, unit } => self.open_gate(gate, unit),
            ToGroup::CompleteGate { request } => self.complete_gated(request),
            ToGroup::AttachRing(attachment) => self.attach_ring(&attachment),
            ToGroup::DetachRing => self.detach_ring(),
            ToGroup::ResumeRing => self.resume_ring(),
            ToGroup::ResetRing => self.reset_ring(),
            ToGroup::Statistics(mut statistics) => {
                self.fill_statistics(&mut statistics);
                self.tell(FromGroup::Statistics(statistics));
            }
            ToGroup::CloseChannels { target } => self.close_target(target),
            ToGroup::CloseNexus { nexus } => {
                let place = self.nexuses.iter().position(|n| n.in_use && n.handle == nexus);
                if let Some(place) = place.and_then(|place| u32::try_from(place).ok()) {
                    self.close_nexus(place, CloseReason::Administrative);
                }
            }
            ToGroup::ReleaseRing => {
                self.kit.releasing = true;
                self.trace_all(Point::Revoked);
                self.refuse_host_waiters();
                self.continue_release();
            }
        }
    }

    /// Timers and everything that waits for time or for rare ends.
    pub(crate) fn slow_work(&mut self) {
        #[cfg(feature = "mutants")]
        self.establish_late();
        self.flush_outbox();
        if !self.managements.is_empty() || self.kit.ends_seen {
            self.finish_managements();
        }
        if self.gates_closed != 0 {
            self.acknowledge_gates();
        }
        if self.alone != 0 {
            self.look_at_alone();
        }
        if !self.pending_logins.is_empty() {
            self.retry_logins();
        }
        if self.changing.is_some() {
            self.continue_change();
        }
        if self.gates_closed | self.alone != 0 || self.changing.is_some() {
            self.expire_held();
        }
        if self.logouts != 0 {
            self.expire_logouts();
        }
        if self.events_due {
            self.send_events();
        }
        self.expire_waiters();
        // A claim gives up a bounded number of cached buffers, so a waiting one asks again.
        self.wake_buffers();
        self.wake_backend();
        self.kit.card_cache.purge(self.kit.now);
        for cache in
            [self.kit.host_cache.as_mut(), self.kit.staging_cache.as_mut()].into_iter().flatten()
        {
            cache.purge(self.kit.now);
        }
        if self.kit.releasing {
            self.continue_release();
        }
        self.check_ring_fault();
        self.run_wakes();
    }

    /// Answers BUSY to commands that waited too long for an absent agent (DESIGN section 5).
    fn expire_waiters(&mut self) {
        let absent = match (self.kit.ring.is_some(), self.detached_since) {
            (true, None) => return,
            (_, since) => since.unwrap_or(Nanoseconds(0)),
        };
        if self.kit.now.since(absent) < self.limits.agent_wait_ns {
            return;
        }
        while let Some(head) = self.kit.need_backend.head() {
            if self.kit.now.since(self.tasks.at(head).started) < self.limits.agent_wait_ns {
                return;
            }
            self.kit.need_backend.pop(&mut self.kit.links);
            let task = self.tasks.at_mut(head);
            task.in_backend_list = false;
            task.end(Status::Busy);
            self.answer(head);
        }
    }

    /// Answers BUSY to commands that a closed gate or an unfinished change held too long.
    fn expire_held(&mut self) {
        for unit in 0..u32::try_from(self.units.0.len()).unwrap_or(0) {
            while let Some(shard) = self.units.get_mut(unit)
                && let Some(head) = shard.held.head()
                && self.kit.now.since(self.tasks.at(head).started) >= self.limits.agent_wait_ns
            {
                shard.held.pop(&mut self.kit.links);
                shard.active += 1;
                self.tasks.at_mut(head).end(Status::Busy);
                self.answer(head);
            }
        }
    }

    /// Brings in a snapshot. Units that did not change are not touched.
    fn configure(&mut self, configuration: Arc<Configuration>) {
        let old = self.kit.configuration.clone();
        let mut drains = Vec::new();
        for unit in &old.units {
            match configuration.unit(unit.handle) {
                Some(new) if same_backing(unit, new) => {}
                _ => drains.push(unit.handle),
            }
        }
        for handle in &drains {
            if let Some(shard) = self.units.get_mut(*handle) {
                shard.closed |= closed::FOR_CHANGE;
            }
        }
        // One change at a time: the coordinator waits for the report of each.
        self.changing = Some(Change {
            configuration,
            drains,
            fences: Vec::new(),
            aborts: Vec::new(),
            deadline: Nanoseconds(u64::MAX),
            applied: false,
        });
        self.retry_ahead();
        self.continue_change();
    }

    /// Outcomes that waited for a configuration: those that need not wait any more go on.
    fn retry_ahead(&mut self) {
        for outcome in std::mem::take(&mut self.ahead) {
            self.on_outcome(outcome.token, &outcome);
        }
    }

    fn continue_change(&mut self) {
        let Some(mut change) = self.changing.take() else { return };
        if !change.applied {
            let quiet = change.drains.iter().all(|handle| {
                let over = self.over_but_for_change(*handle);
                self.units.get(*handle).is_none_or(|shard| shard.active <= over)
            });
            if !quiet {
                self.changing = Some(change);
                return;
            }
            let before = self.kit.configuration.generation;
            change.fences = self.apply(&change.configuration);
            change.aborts = self.bring_effects(&change.configuration, before);
            change.deadline = self.kit.now.plus(self.limits.drain_wait_ns);
            change.applied = true;
            self.send_events();
            for handle in std::mem::take(&mut change.drains) {
                self.release_held(handle);
            }
        }
        let generation = change.configuration.generation;
        self.changing = Some(change);
        self.retry_ahead();
        let is_open = |&(unit, parity): &(u32, usize)| {
            let at_backend = self.units.get(unit).and_then(|shard| shard.at_backend.get(parity));
            at_backend.is_some_and(|&count| {
                let of_parity = |task: &Task| (task.access_generation & 1) as usize == parity;
                let mut over = self.waiting_for_changes(unit, of_parity);
                if mutant::is(Mutant::DrainOfOneChannel) {
                    over += self.of_further_channels(unit, of_parity);
                }
                count != 0 && count > over
            })
        };
        if self.changing.as_ref().is_some_and(|change| change.fences.iter().any(is_open)) {
            return;
        }
        if self.waits_for_aborted() {
            return;
        }
        self.changing = None;
        self.tell(FromGroup::Configured { generation });
    }

    /// Whether the change under way ends only after the task in slot `index`: then its answer cannot wait for
    /// a later change, which comes after this one.
    pub(crate) fn change_waits_for(&self, index: u32) -> bool {
        let Some(change) = &self.changing else { return false };
        let task = self.tasks.at(index);
        let parity = (task.access_generation & 1) as usize;
        change.drains.contains(&task.unit) || change.fences.contains(&(task.unit, parity))
    }

    /// Whether commands that the change under way aborted are not over. What holds them up for too long loses
    /// its channel.
    fn waits_for_aborted(&mut self) -> bool {
        let Some(change) = self.changing.as_mut().filter(|change| !change.aborts.is_empty()) else {
            return false;
        };
        let late = self.kit.now >= change.deadline;
        if late {
            change.deadline = Nanoseconds(u64::MAX);
        }
        let aborts = change.aborts.clone();
        // Those that wait for this very change are not among them, aborted by somebody else or not.
        let is_one = |task: &Task| {
            task.awaited
                && aborts.contains(&(task.nexus, task.unit))
                && !is_about_reservations(task)
        };
        if late {
            self.tear_down(is_one);
        }
        let mut from = 0;
        while let Some(index) = self.tasks.live_from(from) {
            from = index + 1;
            if is_one(self.tasks.at(index)) {
                return true;
            }
        }
        false
    }

    /// What changes of reservations since generation `before` bring: unit attentions, and the end of commands.
    /// Gives the nexuses (places) and units whose commands were aborted.
    fn bring_effects(&mut self, configuration: &Configuration, before: u32) -> Vec<(u32, u32)> {
        let mut aborts = Vec::new();
        for unit in &configuration.units {
            let news = unit.access_effects.iter().filter(|effect| effect.generation > before);
            for effect in news {
                let places = (0_u32..).zip(self.nexuses.iter_mut());
                for (place, nexus) in places.filter(|(_, nexus)| nexus.in_use) {
                    let own = configuration.reserving_nexus(&nexus.initiator, nexus.target);
                    if own != effect.nexus {
                        continue;
                    }
                    if effect.abort {
                        aborts.push((place, unit.handle));
                    }
                    let Some(attention) = effect.attention else { continue };
                    for lun in nexus.luns.iter_mut().filter(|lun| lun.unit == unit.handle) {
                        lun.tell(attention);
                    }
                }
            }
        }
        for &(nexus, unit) in &aborts {
            self.abort_matching(|task| {
                task.nexus == nexus && task.unit == unit && !is_about_reservations(task)
            });
        }
        aborts
    }

    /// Tasks of the unit that wait for the very change to be made: those that the host has ended, and those
    /// that it ends when a change is reported.
    fn over_but_for_change(&self, handle: u32) -> u32 {
        let waits = |outcome: &&lunar_backend::Outcome| {
            let id = self.tasks.live(outcome.token);
            id.is_some_and(|id| self.tasks.at(id.index).unit == handle)
        };
        let ended = u32::try_from(self.ahead.iter().filter(waits).count()).unwrap_or(0);
        ended + self.waiting_for_changes(handle, |_| true)
    }

    /// Commands of the unit that are at the host and change access states, or are about reservations, among the
    /// tasks that `matches` picks: the host ends them, and those behind them, when a change is reported.
    fn waiting_for_changes(&self, unit: u32, matches: impl Fn(&Task) -> bool) -> u32 {
        let mut count = 0;
        let mut from = 0;
        while let Some(index) = self.tasks.live_from(from) {
            from = index + 1;
            let task = self.tasks.at(index);
            let is_one = task.unit == unit
                && task.at_backend
                && matches!(task.work, Work::Forward)
                && (task.cdb.first() == Some(&opcode::MAINTENANCE_OUT)
                    || is_about_reservations(task));
            count += u32::from(is_one && matches(task));
        }
        count
    }

    /// For [`Mutant::DrainOfOneChannel`]: operations of the unit that are not of the first channel.
    fn of_further_channels(&self, unit: u32, matches: impl Fn(&Task) -> bool) -> u32 {
        let mut count = 0;
        let mut from = 0;
        while let Some(index) = self.tasks.live_from(from) {
            from = index + 1;
            let task = self.tasks.at(index);
            let further = task.unit == unit && task.at_backend && task.channel != 0;
            count += u32::from(further && matches(task));
        }
        count
    }

    fn release_held(&mut self, handle: u32) {
        let Some(shard) = self.units.get_mut(handle) else { return };
        shard.closed &= !closed::FOR_CHANGE;
        self.admit_held(handle);
    }

    /// Puts the snapshot in force; gives the (unit, parity) pairs whose older operations must end
    /// before the change may be reported.
    fn apply(&mut self, configuration: &Arc<Configuration>) -> Vec<(u32, usize)> {
        let mut fences = Vec::new();
        for shard in self.units.0.iter_mut().flatten() {
            shard.in_use = false;
        }
        for unit in &configuration.units {
            let place = unit.handle as usize;
            if self.units.0.len() <= place {
                self.units.0.resize_with(place + 1, || None);
            }
            let Some(entry) = self.units.0.get_mut(place) else { continue };
            let shard = entry.get_or_insert_with(|| Box::new(UnitShard::new(unit)));
            let narrowed = unit.logical_unit.read_only && !shard.logical_unit.read_only;
            let news = News {
                // The nexus whose MODE SELECT it was takes it back with the outcome.
                mode_changed: ModeParameters::of(&shard.logical_unit)
                    != ModeParameters::of(&unit.logical_unit),
                ..news_of_medium(&shard.logical_unit, &unit.logical_unit)
            };
            shard.in_use = true;
            shard.logical_unit = unit.logical_unit.clone();
            shard.backend = unit.backend;
            shard.placement = unit.placement;
            if narrowed {
                fences.push((unit.handle, shard.narrow_access()));
            }
            if news != News::default() {
                for nexus in self.nexuses.iter_mut().filter(|nexus| nexus.in_use) {
                    for lun in nexus.luns.iter_mut().filter(|lun| lun.unit == unit.handle) {
                        news.tell(lun);
                    }
                }
            }
        }
        for shard in self.units.0.iter_mut().filter(|shard| {
            shard
                .as_ref()
                .is_some_and(|shard| !shard.in_use && shard.held.is_empty() && !shard.is_closed())
        }) {
            *shard = None;
        }
        let old = std::mem::replace(&mut self.kit.configuration, configuration.clone());
        for place in 0..self.nexuses.len() {
            if self.nexuses[place].in_use {
                self.remap(place, &old, configuration, &mut fences);
            }
        }
        fences
    }

    /// Gives a nexus the LUN list of the new snapshot, with the states of its target port. LUNs that stay
    /// keep their task set and unit attentions; the others are told as SPC-6 wants it.
    fn remap(
        &mut self,
        place: usize,
        old: &Configuration,
        configuration: &Configuration,
        fences: &mut Vec<(u32, usize)>,
    ) {
        let nexus = &mut self.nexuses[place];
        let Some(target) = configuration.target(nexus.target).filter(|target| target.enabled)
        else {
            for lun in nexus.luns.iter().filter(|lun| lun.mapped) {
                narrow(&mut self.units, fences, lun.unit);
            }
            self.close_nexus(place as u32, CloseReason::Administrative);
            return;
        };
        let visible = crate::login::visible_luns(target, nexus);
        let mut inventory_changed = false;
        let mut added = Vec::new();
        for lun in &mut nexus.luns {
            let stays = visible.iter().any(|entry| entry.lun == lun.number);
            if lun.mapped && !stays {
                inventory_changed = true;
                lun.set_access(false, AccessState::Active, Access::OPEN);
                narrow(&mut self.units, fences, lun.unit);
            }
        }
        let own = configuration.reserving_nexus(&nexus.initiator, nexus.target);
        for entry in visible {
            let state = configuration.access_state(nexus.target, entry.unit);
            let access = configuration.access(&own, entry.unit);
            let Some(lun) = nexus.luns.iter_mut().find(|lun| lun.number == entry.lun) else {
                inventory_changed = true;
                added.push(NexusLun::new(entry, state, access));
                continue;
            };
            inventory_changed |= !lun.mapped;
            if lun.set_access(true, state, access) {
                narrow(&mut self.units, fences, lun.unit);
            }
            if lun.unit != entry.unit {
                narrow(&mut self.units, fences, lun.unit);
                lun.unit = entry.unit;
                lun.tell(UnitAttention::InquiryDataChanged);
            } else if let Some(news) = news_of_access(nexus.handle, entry.unit, old, configuration)
            {
                lun.tell(news);
            }
            if entry.read_only && !lun.read_only {
                narrow(&mut self.units, fences, entry.unit);
            }
            lun.read_only = entry.read_only;
        }
        if inventory_changed {
            for lun in nexus.luns.iter_mut().filter(|lun| lun.mapped) {
                lun.attentions.establish(UnitAttention::ReportedLunsDataChanged);
            }
            // Every LUN has the unit attention, and one event tells of it.
            if let Some(lun) = nexus.luns.iter_mut().find(|lun| lun.mapped) {
                lun.tell(UnitAttention::ReportedLunsDataChanged);
            }
        }
        // The new ones have the unit attention of a power on, which says enough.
        nexus.luns.append(&mut added);
        nexus.index_luns();
    }

    fn attach_ring(&mut self, attachment: &RingAttachment) {
        let error = self.try_attach(attachment).err();
        let in_flight =
            self.kit.ring.as_ref().map(|ring| ring.in_flight().collect()).unwrap_or_default();
        let RingAttachment { offer, ring, .. } = *attachment;
        self.tell(FromGroup::RingAttached { offer, ring, in_flight, error });
    }

    fn try_attach(&mut self, attachment: &RingAttachment) -> Result<(), String> {
        // Who announced a revoke is gone, and its memory is offered again.
        self.kit.releasing = false;
        let sound = self.kit.ring.as_ref().is_some_and(|ring| ring.fault().is_none());
        if sound && self.attached_to.as_ref() == Some(&attachment.ring_blob) {
            // The same host memory as before: the rings go on once the host has reconciled.
            return self.restore_ring(attachment);
        }
        self.reset_ring();
        let rings = self.import(&attachment.ring_blob)?;
        let data = match self.import(&attachment.data_blob) {
            Ok(data) => data,
            Err(error) => {
                self.memory.unimport(rings.id);
                return Err(error);
            }
        };
        self.arenas = vec![rings, data];
        let attached = self.build_ring(attachment, rings, data);
        if attached.is_err() {
            self.release_arenas();
        } else {
            self.attached_to = Some(attachment.ring_blob.clone());
        }
        attached
    }

    /// Finds the way to the host's memory anew, if it was cut.
    fn restore_ring(&mut self, attachment: &RingAttachment) -> Result<(), String> {
        let Some(ring) = self.kit.ring.as_mut().filter(|ring| ring.is_cut()) else { return Ok(()) };
        ring.drain();
        for arena in &self.arenas {
            self.memory.unimport(arena.id);
        }
        self.import(&attachment.ring_blob)?;
        self.import(&attachment.data_blob)?;
        if let Some(ring) = self.kit.ring.as_mut() {
            ring.restore();
        }
        self.cut_told = false;
        Ok(())
    }

    fn import(&mut self, blob: &[u8]) -> Result<HostArena, String> {
        self.memory.import(blob).map_err(|error| error.to_string())
    }

    fn build_ring(
        &mut self,
        attachment: &RingAttachment,
        rings: HostArena,
        data: HostArena,
    ) -> Result<(), String> {
        let end = attachment.data_offset.checked_add(attachment.data_bytes);
        if end.is_none_or(|end| end > data.length) {
            return Err(format!(
                "the data area ({} bytes at {}) does not lie in its arena of {} bytes",
                attachment.data_bytes, attachment.data_offset, data.length
            ));
        }
        // One half for HostDram placement, one to stage CardDram operations: neither waits for the
        // other's memory.
        let half = (attachment.data_bytes / 2) & !0xfff;
        let Some(dma) = self.dma.take() else {
            return Err("the DMA context is in use".into());
        };
        let setup = RingSetup {
            ring: attachment.ring,
            arena: rings.id,
            layout: attachment.layout,
            submission_offset: attachment.submission_offset,
            completion_offset: attachment.completion_offset,
            submission_sequence: attachment.submission_sequence,
            completion_sequence: attachment.completion_sequence,
            data_arena: data.id,
            data_offset: attachment.data_offset,
            staging_offset: attachment.data_offset + half,
            staging_bytes_max: half,
        };
        match RingBackend::new(&mut self.memory, dma, setup, self.limits.slots) {
            Ok(mut ring) => {
                ring.detach();
                // What the HCA wrote for the ring before this one must not land in its buffers.
                ring.flush_before_publish();
                #[cfg(feature = "mutants")]
                if mutant::is(Mutant::NoFlush) {
                    ring.set_mutation(lunar_backend::ring::Mutation::FlushSkipped);
                }
                self.kit.ring = Some(ring);
            }
            Err((dma, error)) => {
                self.dma = Some(dma);
                return Err(error.to_string());
            }
        }
        let cache = |offset: u64, key| {
            SgvCache::new(
                Placement::HostDram,
                key,
                data.base + attachment.data_offset + offset,
                half,
                lunar_dma::sgv::Config {
                    class_bytes_max: TRANSFER_BYTES_MAX,
                    ..lunar_dma::sgv::Config::default()
                },
            )
        };
        // Without a key the HCA cannot reach the arena: everything is placed on the card and copied.
        self.kit.host_cache = data.key.map(|key| cache(0, key));
        // Staging memory is reached by DMA alone, which goes by arena and offset.
        self.kit.staging_cache = Some(cache(half, data.key.unwrap_or_default()));
        self.kit.releasing = false;
        Ok(())
    }

    fn release_arenas(&mut self) {
        for arena in std::mem::take(&mut self.arenas) {
            self.memory.unimport(arena.id);
        }
        self.attached_to = None;
    }

    /// The agent is gone. Operations in flight stay in flight; new ones wait.
    fn detach_ring(&mut self) {
        if let Some(ring) = self.kit.ring.as_mut() {
            ring.detach();
        }
        self.detached_since = Some(self.kit.now);
        self.trace_all(Point::RingLost);
    }

    fn resume_ring(&mut self) {
        if let Some(ring) = self.kit.ring.as_mut() {
            ring.attach();
        }
        self.detached_since = None;
        self.wake_backend();
    }

    /// The host's memory is gone: what is in flight is lost, tasks with buffers there as well.
    fn reset_ring(&mut self) {
        self.trace_all(Point::RingLost);
        let Some(mut ring) = self.kit.ring.take() else { return };
        self.lose_host_buffers();
        for outcome in std::mem::take(&mut self.ahead) {
            self.on_outcome(outcome.token, &lunar_backend::Outcome::lost(outcome.token));
        }
        for token in ring.reset() {
            self.on_outcome(token, &lunar_backend::Outcome::lost(token));
        }
        self.dma = Some(ring.into_dma());
        self.cut_told = false;
        self.release_arenas();
        // Buffers that tasks still hold belong to the old arena; `over` knows by the epoch.
        self.kit.host_cache = None;
        self.kit.staging_cache = None;
        self.kit.host_epoch = self.kit.host_epoch.wrapping_add(1);
        for nexus in &mut self.nexuses {
            nexus.host_share = Share::new(self.limits.nexus_share_bytes);
        }
        self.detached_since = Some(self.kit.now);
    }

    /// Host memory is going: tasks whose data lies there and that wait on the card end with ABORTED
    /// COMMAND. Posted work requests fail by the revoked key and take their channel with them.
    fn lose_host_buffers(&mut self) {
        let mut from = 0;
        while let Some(index) = self.tasks.live_from(from) {
            from = index + 1;
            let task = self.tasks.at_mut(index);
            let on_host = task
                .buffer
                .as_ref()
                .is_some_and(|buffer| buffer.placement() == Placement::HostDram);
            if !on_host || task.batch != Batch::None {
                continue;
            }
            let channel = &mut self.channels[task.channel as usize];
            let waited = match task.state {
                State::NeedBackend => {
                    task.in_backend_list = false;
                    self.kit.need_backend.remove(&mut self.kit.links, index)
                }
                State::NeedReadRoom => channel.need_read.remove(&mut self.kit.links, index),
                State::NeedSendRoom => channel.need_send.remove(&mut self.kit.links, index),
                _ => false,
            };
            if waited {
                task.check(Sense::COMMAND_ABORTED);
                self.answer(index);
            }
        }
    }

    /// An announced revoke begins: what waits for the ring with its data in host memory is answered
    /// BUSY, as whatever comes to the ring with such data from now on. The ring goes on until it is
    /// empty; commands with their data on the card wait.
    fn refuse_host_waiters(&mut self) {
        let mut waiting = std::mem::take(&mut self.kit.need_backend);
        while let Some(index) = waiting.pop(&mut self.kit.links) {
            let task = self.tasks.at_mut(index);
            let on_host = task.buffer.as_ref().map(Buffer::placement) == Some(Placement::HostDram);
            if on_host {
                task.in_backend_list = false;
                self.advance(index);
            } else {
                self.kit.need_backend.push(&mut self.kit.links, index);
            }
        }
    }

    /// An announced revoke: once nothing of the host's memory is in use, it is given back.
    fn continue_release(&mut self) {
        let in_use = self.kit.ring.as_ref().is_some_and(|ring| ring.outstanding() != 0)
            || self.kit.host_cache.as_ref().is_some_and(|cache| cache.held_bytes() != 0);
        if in_use {
            return;
        }
        self.kit.releasing = false;
        self.reset_ring();
        self.tell(FromGroup::RingReleased);
    }

    fn check_ring_fault(&mut self) {
        let Some(ring) = self.kit.ring.as_ref() else { return };
        if ring.is_cut() && !std::mem::replace(&mut self.cut_told, true) {
            self.tell_event(Event::RingCut { group: self.index });
        }
        let Some(fault) = self.kit.ring.as_ref().and_then(RingBackend::fault) else { return };
        let text = fault.to_string();
        self.tell_event(Event::RingFault { group: self.index, text });
        self.reset_ring();
    }

    /// Records what happened to every task in its state.
    fn trace_all(&mut self, point: fn(State) -> Point) {
        let mut from = 0;
        while let Some(index) = self.tasks.live_from(from) {
            from = index + 1;
            let task = self.tasks.at(index);
            self.kit.record(task.tag, point(task.state));
        }
    }

    fn fill_statistics(&mut self, out: &mut GroupStatistics) {
        out.group = self.index;
        out.counters = self.kit.counters;
        out.nexuses.clear();
        for nexus in self.nexuses.iter().filter(|nexus| nexus.in_use) {
            out.nexuses.push(NexusStatistics {
                handle: nexus.handle,
                initiator: nexus.initiator,
                target: nexus.target,
                peer: nexus.peer,
                channels: nexus.channels,
                tasks: nexus.tasks,
                held_bytes: nexus.card_share.held() + nexus.host_share.held(),
                counters: nexus.counters,
                latency: nexus.latency.clone(),
            });
        }
        out.units.clear();
        let shards = (0_u32..).zip(&self.units.0);
        for (handle, shard) in
            shards.filter_map(|(handle, shard)| Some((handle, shard.as_deref()?)))
        {
            out.units.push(UnitStatistics {
                handle,
                counters: shard.counters,
                latency: shard.latency.clone(),
            });
        }
        out.card_sgv = Some(self.kit.card_cache.statistics());
        out.host_sgv = self.kit.host_cache.as_ref().map(SgvCache::statistics);
        out.ring = self
            .kit
            .ring
            .as_ref()
            .map(|ring| RingShard { counters: ring.statistics(), outstanding: ring.outstanding() });
    }
}

/// What a nexus is told of a unit whose target port groups changed: of their states, unless the change was
/// made by SET TARGET PORT GROUPS through this very nexus and unit (SPC-6 5.17.2), or that it has groups now,
/// or none any more.
fn news_of_access(
    nexus: u32,
    unit: u32,
    old: &Configuration,
    new: &Configuration,
) -> Option<UnitAttention> {
    match (old.device_group(unit), new.device_group(unit)) {
        (None, None) => None,
        (Some(old), Some(new)) if old.groups == new.groups => None,
        (Some(_), Some(new)) => (new.set_by != Some((nexus, unit)))
            .then_some(UnitAttention::AsymmetricAccessStateChanged),
        _ => Some(UnitAttention::InquiryDataChanged),
    }
}

/// Access to `unit` got narrower: what was decided before is checked again at submit, and what the
/// backend has must end before the change is reported. Once a change: a second time would fence what was
/// decided since the first.
fn narrow(units: &mut Units, fences: &mut Vec<(u32, usize)>, unit: u32) {
    if fences.iter().all(|(fenced, _)| *fenced != unit)
        && let Some(shard) = units.get_mut(unit)
    {
        fences.push((unit, shard.narrow_access()));
    }
}

/// Whether the task is a command that changes reservations, or asks for them: the host answers with nothing
/// that is not in force.
fn is_about_reservations(task: &Task) -> bool {
    matches!(
        task.cdb.first(),
        Some(
            &opcode::PERSISTENT_RESERVE_IN
                | &opcode::PERSISTENT_RESERVE_OUT
                | &opcode::RESERVE_6
                | &opcode::RELEASE_6
                | &opcode::RESERVE_10
                | &opcode::RELEASE_10
        )
    )
}

/// Whether a unit's tasks may go on undisturbed from `old` to `new`.
fn same_backing(old: &Unit, new: &Unit) -> bool {
    old.backend == new.backend
        && old.name == new.name
        && old.logical_unit.block_bytes == new.logical_unit.block_bytes
        && old.logical_unit.medium == new.logical_unit.medium
        // Shrinking is a change of backing for whoever is beyond the new end. Ejecting is none: the host
        // ends what it has, and the command that ejects is itself in progress.
        && (old.logical_unit.blocks <= new.logical_unit.blocks || !new.logical_unit.has_medium())
}

/// What the nexuses are told of a unit that changed.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct News {
    mode_changed: bool,
    capacity_changed: bool,
    /// A medium came.
    medium_came: bool,
    /// A medium came or went.
    medium_moved: bool,
}

impl News {
    fn tell(self, lun: &mut NexusLun) {
        lun.medium_changed |= self.medium_moved;
        let attentions = [
            (self.capacity_changed, UnitAttention::CapacityDataChanged),
            (self.medium_came, UnitAttention::MediumMayHaveChanged),
            (self.mode_changed, UnitAttention::ModeParametersChanged),
        ];
        for (_, attention) in attentions.into_iter().filter(|(established, _)| *established) {
            lun.tell(attention);
        }
    }
}

/// A medium that goes establishes no unit attention: what needs one is NOT READY from then on.
fn news_of_medium(old: &LogicalUnit, new: &LogicalUnit) -> News {
    let (had, has) = (old.has_medium(), new.has_medium());
    let same = had && has && old.medium == new.medium;
    News {
        capacity_changed: same && old.blocks != new.blocks,
        medium_came: has && !same,
        medium_moved: (had || has) && !same,
        mode_changed: false,
    }
}
