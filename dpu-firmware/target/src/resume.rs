//! What makes tasks go on: the poll group's ways into the state machine. Outcomes of the backend, room
//! that came back, ends that others waited for, and aborts.

use lunar_platform::Platform;

use crate::configuration::BackendKind;
use crate::focus::{After, Focus};
use crate::message::CloseReason;
use crate::poll_group::PollGroup;
use crate::task::{Membership, State, Step, Wake};
use crate::trace::Point;

impl<P: Platform> PollGroup<P> {
    /// The task in slot `index`, which came from this group's table, with all that it names.
    #[inline]
    pub(crate) fn focus(&mut self, index: u32) -> Focus<'_, P> {
        self.focus_as(index)
    }

    /// As [`Self::focus`], for a way that is `TRACED` or not.
    #[inline(always)]
    pub(crate) fn focus_as<const TRACED: bool>(&mut self, index: u32) -> Focus<'_, P, TRACED> {
        let (id, task) = self.tasks.entry(index);
        let channel = &mut self.channels[task.channel as usize];
        let nexus = &mut self.nexuses[task.nexus as usize];
        let unit = self.units.get_mut(task.unit);
        Focus { id, task, channel, nexus, unit, kit: &mut self.kit }
    }

    /// As [`Focus::advance`].
    pub(crate) fn advance(&mut self, index: u32) {
        let mut focus = self.focus(index);
        let (channel, after) = (focus.task.channel, focus.advance());
        self.finish(index, channel, after);
    }

    /// Answers a task with the status that it has.
    pub(crate) fn answer(&mut self, index: u32) {
        self.focus(index).enter(State::NeedSendRoom);
        self.advance(index);
    }

    /// As [`Focus::over`].
    pub(crate) fn over(&mut self, index: u32) {
        let mut focus = self.focus(index);
        let (channel, after) = (focus.task.channel, focus.over());
        self.finish(index, channel, after);
    }

    /// Carries out what a step left to the group, about the task in slot `index` and its channel.
    #[inline]
    pub(crate) fn finish(&mut self, index: u32, channel: u32, after: After) {
        match after {
            After::Rest => {}
            After::Release => self.tasks.release(index),
            After::Close { release } => {
                if release {
                    self.tasks.release(index);
                }
                self.close_channel(channel, CloseReason::WorkRequestFailed);
            }
        }
    }

    /// The backend's answer: status and sense, then on.
    pub(crate) fn on_outcome(&mut self, token: u64, outcome: &lunar_backend::Outcome) {
        let Some(id) = self.tasks.live(token) else {
            self.kit.counters.stale_completions += 1;
            return;
        };
        let in_force = self.kit.configuration.generation;
        if outcome.required_generation > in_force && !self.change_waits_for(id.index) {
            // The initiator must not hear of it before this group is under that configuration.
            self.ahead.push(*outcome);
            return;
        }
        let mut focus = self.focus(id.index);
        if !focus.task.at_backend {
            self.kit.counters.stale_completions += 1;
            return;
        }
        let (channel, after) = (focus.task.channel, focus.on_outcome(outcome));
        self.finish(id.index, channel, after);
    }

    /// Lets go on what the ends since the last call made room for. Called between events and not
    /// from within them, so that one end cannot nest into another however many tasks wait.
    #[inline]
    pub(crate) fn run_wakes(&mut self) {
        if !self.kit.wakes.is_empty() {
            self.wake_all();
        }
    }

    #[inline(never)]
    fn wake_all(&mut self) {
        while let Some(wake) = self.kit.wakes.pop_front() {
            match wake {
                Wake::Dormant { nexus, lun } => self.wake_dormant(nexus, lun),
                Wake::Alone { unit } => self.ask_to_be_alone(unit),
                Wake::Buffers => {
                    self.wake_buffers();
                    self.wake_backend();
                }
                Wake::Channel(channel) => {
                    self.wake_receives(channel);
                    self.settle_channel(channel);
                }
            }
        }
    }

    /// Enables dormant tasks of a task set as far as its rules allow, oldest first.
    fn wake_dormant(&mut self, nexus: u32, lun: u32) {
        loop {
            let Some(entry) = self.nexuses[nexus as usize].luns.get_mut(lun as usize) else {
                return;
            };
            let Some(head) = entry.dormant.head() else { return };
            let attribute = self.tasks.at(head).attribute;
            if !entry.set.wake(attribute) {
                return;
            }
            entry.dormant.pop(&mut self.kit.links);
            self.tasks.at_mut(head).membership = Membership::Enabled;
            self.advance(head);
        }
    }

    /// Gives buffers to the tasks that wait for one, oldest first.
    pub(crate) fn wake_buffers(&mut self) {
        for list in 0..self.kit.need_buffer.len() {
            while let Some(head) = self.kit.need_buffer[list].head() {
                let mut focus = self.focus(head);
                let Some(step) = focus.try_claim_buffer() else { break };
                focus.kit.need_buffer[list].pop(&mut focus.kit.links);
                if let Step::Enter(state) = step {
                    focus.enter(state);
                    self.advance(head);
                }
            }
        }
    }

    /// Retries the tasks that wait for room in the ring, oldest first.
    pub(crate) fn wake_backend(&mut self) {
        for _ in 0..self.kit.need_backend.len() {
            let Some(head) = self.kit.need_backend.head() else { return };
            self.advance(head);
            if self.tasks.at(head).state != State::NeedBackend {
                // `submit` leaves it where it is; it left the state from the head of the list.
                self.kit.need_backend.pop(&mut self.kit.links);
                self.tasks.at_mut(head).in_backend_list = false;
            } else {
                return;
            }
        }
    }

    /// Marks a task for abort: it answers nothing, gives up what it waits for, and is over once
    /// everything it has outside is back. Never jumps over outstanding work.
    pub(crate) fn abort(&mut self, index: u32) {
        let mut focus = self.focus(index);
        let state = focus.task.state;
        focus.trace(Point::Aborted(state));
        let Focus { id, task, channel, nexus, unit, kit } = focus;
        match state {
            // Its response is on the way; it ends by itself, and whoever waits for it still does.
            State::Sending | State::Aborting | State::Managing => return,
            State::Blocked => {
                if task.membership == Membership::Dormant {
                    if let Some(entry) = nexus.luns.get_mut(task.lun as usize) {
                        entry.dormant.remove(&mut kit.links, index);
                    }
                } else if let Some(unit) = unit {
                    unit.held.remove(&mut kit.links, index);
                    // Held tasks were not counted as active yet, and `over` takes one off.
                    unit.active += 1;
                }
            }
            State::NeedBuffer => {
                kit.need_buffer[task.buffer_list].remove(&mut kit.links, index);
            }
            State::NeedReadRoom => {
                channel.need_read.remove(&mut kit.links, index);
            }
            State::NeedBackend => {
                task.in_backend_list = false;
                kit.need_backend.remove(&mut kit.links, index);
            }
            State::NeedSendRoom => {
                channel.need_send.remove(&mut kit.links, index);
            }
            State::Fetching => {
                if channel.is_open()
                    && crate::mutant::is(crate::mutant::Mutant::LateWriteAfterAbort)
                {
                    (task.silent, task.awaited) = (true, false);
                    return;
                }
            }
            State::AtBackend => {
                if unit.is_some_and(|unit| unit.backend == BackendKind::Ring)
                    && let Some(ring) = kit.ring.as_mut()
                {
                    ring.cancel(id.to_token());
                }
            }
        }
        task.silent = true;
        task.state = State::Aborting;
        if task.is_quiet() {
            self.over(index);
        }
    }
}
