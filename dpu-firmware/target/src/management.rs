//! Task management functions, and this group's shard of the gates.
//!
//! A function marks the tasks it aborts and answers only when every one of them is over: its work
//! requests on all channels of the nexus and its backend token are back. The slots stay held until
//! then; never GOOD early. What concerns the whole logical unit goes through a gate: the group asks
//! the coordinator, every group closes its shard, and the function answers when the gate opens.

use lunar_platform::{Nanoseconds, Platform};
use lunar_scsi::task_set::TaskManagementFunction;
use lunar_scsi::unit_attention::UnitAttention;
use lunar_srp::iu::response_code;

use crate::fifo::NONE;
use crate::message::{CloseReason, FromGroup, GateCause};
use crate::mutant::{self, Mutant};
use crate::poll_group::{GateShard, PollGroup, closed};
use crate::task::{Batch, Management, Membership, State};
use crate::trace::Point;

impl<P: Platform> PollGroup<P> {
    /// A TSK_MGMT got its slot: carry out what it asks for.
    pub(crate) fn start_management(
        &mut self,
        index: u32,
        function: Option<TaskManagementFunction>,
        task_tag: u64,
    ) {
        let wait = self.limits.drain_wait_ns;
        let now = self.kit.now;
        let request = self.tasks.id_at(index).to_token();
        let task = self.tasks.at_mut(index);
        task.state = State::Managing;
        let mut management = Management {
            function: function.unwrap_or(TaskManagementFunction::ClearAca),
            response_code: response_code::NO_FAILURE,
            gated: false,
            deadline: now.plus(wait),
            failed_at: now.plus(2 * wait),
        };
        let (nexus, lun, unit) = (task.nexus, task.lun, task.unit);
        if function.is_none() || function == Some(TaskManagementFunction::ClearAca) {
            // No ACA: NACA = 1 is refused in every CDB.
            management.response_code = response_code::FUNCTION_NOT_SUPPORTED;
        } else if lun == NONE {
            management.response_code = response_code::FUNCTION_FAILED;
        } else {
            let shared = self.units.get(unit).is_some_and(|unit| unit.logical_unit.tst == 0);
            let handle = self.nexuses[nexus as usize].handle;
            let cause = match management.function {
                TaskManagementFunction::LogicalUnitReset => Some(GateCause::LogicalUnitReset),
                TaskManagementFunction::ClearTaskSet if shared => {
                    Some(GateCause::ClearTaskSet { origin: handle })
                }
                _ => None,
            };
            if let Some(cause) = cause {
                management.gated = true;
                self.tell(FromGroup::RequestGate { request, unit, cause });
            }
        }
        let function = management.function;
        let marks = management.response_code == response_code::NO_FAILURE && !management.gated;
        self.tasks.at_mut(index).management = Some(management);
        self.managements.push(index);
        if marks {
            self.abort_matching(|task| match function {
                TaskManagementFunction::AbortTask => {
                    task.nexus == nexus && task.lun == lun && task.tag == task_tag
                }
                _ => task.nexus == nexus && task.lun == lun,
            });
        }
        self.finish_managements();
    }

    /// Marks and aborts the commands that `matches` picks.
    pub(crate) fn abort_matching(&mut self, matches: impl Fn(&crate::task::Task) -> bool) {
        let mut from = 0;
        while let Some(index) = self.tasks.live_from(from) {
            from = index + 1;
            let task = self.tasks.at_mut(index);
            if task.management.is_none() && matches(task) {
                task.awaited = true;
                self.abort(index);
            }
        }
    }

    /// Answers the functions that wait for nothing any more. Looks at all slots, so it runs only when
    /// something that somebody waits for has ended, or time has passed.
    pub(crate) fn finish_managements(&mut self) {
        self.kit.ends_seen = false;
        let mut place = 0;
        while place < self.managements.len() {
            let index = self.managements[place];
            let task = self.tasks.at(index);
            let Some(management) = task.management else {
                self.managements.swap_remove(place);
                continue;
            };
            let (nexus, lun) = (task.nexus, task.lun);
            let waits = (management.gated || self.awaits(nexus, lun))
                && !mutant::is(Mutant::GoodBeforeDrain);
            if waits && self.kit.now < management.failed_at {
                if !management.gated && self.kit.now >= management.deadline {
                    self.tear_down(|task| task.nexus == nexus && task.lun == lun && task.awaited);
                }
                place += 1;
                continue;
            }
            self.managements.swap_remove(place);
            let task = self.tasks.at_mut(index);
            if waits && let Some(management) = task.management.as_mut() {
                management.response_code = response_code::FUNCTION_FAILED;
            }
            self.answer(index);
        }
    }

    /// Whether an aborted task of this nexus and LUN is still in progress.
    fn awaits(&self, nexus: u32, lun: u32) -> bool {
        let mut from = 0;
        while let Some(index) = self.tasks.live_from(from) {
            from = index + 1;
            let task = self.tasks.at(index);
            if task.awaited && task.nexus == nexus && task.lun == lun {
                return true;
            }
        }
        false
    }

    /// Closes the channels whose posted work requests hold up marked tasks: the queue pair's flush
    /// gives them back.
    pub(crate) fn tear_down(&mut self, holds: impl Fn(&crate::task::Task) -> bool) {
        let mut from = 0;
        while let Some(index) = self.tasks.live_from(from) {
            from = index + 1;
            let task = self.tasks.at(index);
            if holds(task) && task.batch != Batch::None {
                let channel = task.channel;
                self.close_channel(channel, CloseReason::Stuck);
            }
        }
    }

    /// The channel of a task management function is gone: nobody waits for its answer.
    pub(crate) fn drop_management(&mut self, index: u32) {
        let task = self.tasks.at_mut(index);
        match task.state {
            State::Sending | State::Aborting => {}
            state => {
                if state == State::NeedSendRoom {
                    self.channels[task.channel as usize]
                        .need_send
                        .remove(&mut self.kit.links, index);
                }
                self.managements.retain(|entry| *entry != index);
                let task = self.tasks.at_mut(index);
                task.silent = true;
                task.state = State::Aborting;
                if task.is_quiet() {
                    self.over(index);
                }
            }
        }
    }

    /// Closes this group's shard of a gate: new tasks of the unit are held, the cause is carried out.
    pub(crate) fn close_gate(&mut self, gate: u32, unit: u32, cause: GateCause) {
        let deadline = self.kit.now.plus(self.limits.drain_wait_ns);
        let Some(shard) = self.units.get_mut(unit).filter(|shard| shard.in_use) else {
            // The unit is gone here: nothing to drain.
            return self.tell(FromGroup::GateClosed { gate });
        };
        let shut = GateShard {
            gate,
            #[cfg(feature = "mutants")]
            cause,
            acknowledged: false,
            deadline,
        };
        // It may take the place of a gate that was closed for one task.
        self.gates_closed += u32::from(shard.gate.replace(shut).is_none());
        shard.closed |= closed::BY_GATE;
        self.trace_unit(unit);
        if cause != GateCause::Alone {
            self.abort_matching(|task| task.unit == unit);
        }
        if !mutant::is(Mutant::UnitAttentionAfterGood) {
            self.establish(unit, cause);
        }
        self.acknowledge_gates();
    }

    /// The mistake of [`Mutant::UnitAttentionAfterGood`], made with the slow work.
    #[cfg(feature = "mutants")]
    pub(crate) fn establish_late(&mut self) {
        for (unit, cause) in std::mem::take(&mut self.late_attentions) {
            self.establish(unit, cause);
        }
    }

    /// Unit attentions travel in the gate and are there before their cause's GOOD.
    fn establish(&mut self, unit: u32, cause: GateCause) {
        for nexus in self.nexuses.iter_mut().filter(|nexus| nexus.in_use) {
            let attention = match cause {
                GateCause::LogicalUnitReset => UnitAttention::BusDeviceReset,
                GateCause::Alone => return,
                GateCause::ClearTaskSet { origin } if origin == nexus.handle => continue,
                GateCause::ClearTaskSet { .. } => UnitAttention::CommandsClearedByAnotherInitiator,
            };
            for lun in nexus.luns.iter_mut().filter(|lun| lun.unit == unit) {
                lun.attentions.establish(attention);
            }
        }
    }

    /// Acknowledges the closed gates whose unit is quiet in this group.
    pub(crate) fn acknowledge_gates(&mut self) {
        for unit in 0..u32::try_from(self.units.0.len()).unwrap_or(0) {
            let Some(shard) = self.units.get_mut(unit) else { continue };
            let Some(gate) = shard.gate.as_mut().filter(|gate| !gate.acknowledged) else {
                continue;
            };
            if shard.active == 0 || mutant::is(Mutant::GoodBeforeDrain) {
                gate.acknowledged = true;
                let gate = gate.gate;
                self.tell(FromGroup::GateClosed { gate });
            } else if self.kit.now >= gate.deadline {
                gate.deadline = Nanoseconds(u64::MAX);
                self.tear_down(|task| task.unit == unit && task.awaited);
            }
        }
    }

    /// Opens a gate: held tasks go on, and the function of this group that asked for it answers.
    pub(crate) fn open_gate(&mut self, gate: u32, unit: u32) {
        if let Some(shard) = self.units.get_mut(unit)
            && let Some(_closed) = shard.gate.filter(|closed| closed.gate == gate)
        {
            shard.gate = None;
            shard.closed &= !closed::BY_GATE;
            self.gates_closed -= 1;
            self.admit_held(unit);
            #[cfg(feature = "mutants")]
            if mutant::is(Mutant::UnitAttentionAfterGood) {
                self.late_attentions.push((unit, _closed.cause));
            }
        }
    }

    /// Lets the tasks go on that a gate or a change of `unit` held, unless another one still does.
    pub(crate) fn admit_held(&mut self, unit: u32) {
        // One by one: what a task does may end others that are still held.
        while let Some(shard) = self.units.get_mut(unit).filter(|shard| !shard.is_closed())
            && let Some(index) = shard.held.pop(&mut self.kit.links)
        {
            let mut focus = self.focus(index);
            let (channel, after) = (focus.task.channel, focus.admit());
            self.finish(index, channel, after);
        }
    }

    /// The gate that a function or a task of this group asked for did its work in every group. Who asked may be
    /// gone with its channel; then nobody waits.
    pub(crate) fn complete_gated(&mut self, request: u64) {
        let Some(id) = self.tasks.live(request) else { return };
        let task = self.tasks.at_mut(id.index);
        if let Some(management) = task.management.as_mut() {
            management.gated = false;
            self.finish_managements();
        } else if task.state == State::Blocked && task.membership == Membership::Outside {
            let mut focus = self.focus(id.index);
            let (channel, after) = (focus.task.channel, focus.run_alone());
            self.finish(id.index, channel, after);
        }
    }

    /// TST = 0 (SPC-6 7.5.10): all nexuses share one task set. A task that is not SIMPLE closes the unit here and asks
    /// for its gate elsewhere: so it runs after all that came before it, and before all that comes after it. HEAD OF
    /// QUEUE is allowed less than that, but whoever is enabled may run when it suits the device server.
    pub(crate) fn ask_to_be_alone(&mut self, unit: u32) {
        self.alone += 1;
        if let Some(shard) = self.units.get(unit)
            && let Some(request) = shard.alone.filter(|request| self.tasks.live(*request).is_some())
        {
            self.tell(FromGroup::RequestGate { request, unit, cause: GateCause::Alone });
        }
    }

    /// Opens the units whose task that had to be alone is over.
    pub(crate) fn look_at_alone(&mut self) {
        for unit in 0..u32::try_from(self.units.0.len()).unwrap_or(0) {
            let Some(shard) = self.units.get_mut(unit) else { continue };
            let Some(request) = shard.alone.filter(|request| self.tasks.live(*request).is_none())
            else {
                continue;
            };
            shard.alone = None;
            shard.closed &= !closed::FOR_ONE;
            self.alone -= 1;
            self.tell(FromGroup::GateOver { request });
            self.admit_held(unit);
        }
    }

    fn trace_unit(&mut self, unit: u32) {
        let mut from = 0;
        while let Some(index) = self.tasks.live_from(from) {
            from = index + 1;
            let task = self.tasks.at(index);
            if task.unit == unit {
                self.kit.record(task.tag, Point::Gated(task.state));
            }
        }
    }
}
