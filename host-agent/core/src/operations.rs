//! The operations that were taken from the rings and not ended: fixed slots with generations, so that
//! an outcome that comes twice or too late finds nothing; and who waits for whom.

use lunar_handlers::{Request, RequestId};

use crate::effect::DataRange;
use crate::holds::Hold;
use crate::units::DeviceHandle;
use crate::work::Work;

/// Names one operation between core and shell. Never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId {
    index: u32,
    generation: u32,
}

impl OperationId {
    /// As the handlers' name for it.
    #[must_use]
    pub fn to_request_id(self) -> RequestId {
        RequestId(u64::from(self.generation) << 32 | u64::from(self.index))
    }

    /// The operation that a handler reports. Any value is taken; an unknown one finds nothing.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // cuts the two halves apart
    pub fn from_request_id(id: RequestId) -> Self {
        Self { index: id.0 as u32, generation: (id.0 >> 32) as u32 }
    }
}

/// One request to a handler.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Step {
    pub(crate) device: DeviceHandle,
    pub(crate) request: Request,
    pub(crate) data: Option<DataRange>,
}

/// One operation of the ring.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) ring: u16,
    pub(crate) token: u64,
    pub(crate) unit: u32,
    /// What a handler does for it now, or will when its turn comes.
    pub(crate) step: Step,
    /// What comes after that.
    pub(crate) work: Work,
    pub(crate) hold: Hold,
    /// A CANCEL was answered with its end: no further step.
    pub(crate) stopping: bool,
    /// Of an older card epoch, or of a closed ring: nobody waits for its completion.
    pub(crate) orphaned: bool,
    arrival: u64,
    /// Earlier operations that it waits for.
    blockers: u32,
}

impl Running {
    pub(crate) fn new(
        ring: u16,
        token: u64,
        unit: u32,
        step: Step,
        work: Work,
        hold: Hold,
    ) -> Self {
        let (stopping, orphaned, arrival, blockers) = (false, false, 0, 0);
        Self { ring, token, unit, step, work, hold, stopping, orphaned, arrival, blockers }
    }

    /// Whether no handler has it yet.
    pub(crate) fn is_waiting(&self) -> bool {
        self.blockers > 0
    }
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    running: Option<Running>,
}

/// The table. Grows to the most that there ever was at a time, which the rings' slots bound, and
/// stays so.
#[derive(Debug, Default)]
pub(crate) struct Operations {
    slots: Vec<Slot>,
    free: Vec<u32>,
    arrivals: u64,
    /// Of them, those that hold exclusively and those that wait: where there are none, which is
    /// nearly always, nobody is compared with anybody.
    exclusive: usize,
    waiting: usize,
}

impl Operations {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self {
            slots: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
            ..Self::default()
        }
    }

    /// Takes an operation; the caller looks whether it [`Running::is_waiting`].
    pub(crate) fn insert(&mut self, mut running: Running) -> OperationId {
        if running.hold.is_exclusive() || (self.exclusive > 0 && running.hold != Hold::Nothing) {
            let before = self.iter().filter(|(_, other)| other.hold.conflicts(&running.hold));
            running.blockers = u32::try_from(before.count()).unwrap_or(u32::MAX);
        }
        running.arrival = self.arrivals;
        self.arrivals = self.arrivals.saturating_add(1);
        self.exclusive = self.exclusive.saturating_add(usize::from(running.hold.is_exclusive()));
        self.waiting = self.waiting.saturating_add(usize::from(running.is_waiting()));
        if let Some(index) = self.free.pop()
            && let Some(slot) = usize::try_from(index).ok().and_then(|at| self.slots.get_mut(at))
        {
            slot.running = Some(running);
            return OperationId { index, generation: slot.generation };
        }
        let index = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        self.slots.push(Slot { generation: 0, running: Some(running) });
        OperationId { index, generation: 0 }
    }

    pub(crate) fn get(&self, id: OperationId) -> Option<&Running> {
        let slot = self.slots.get(usize::try_from(id.index).ok()?)?;
        slot.running.as_ref().filter(|_| slot.generation == id.generation)
    }

    pub(crate) fn get_mut(&mut self, id: OperationId) -> Option<&mut Running> {
        let slot = self.slots.get_mut(usize::try_from(id.index).ok()?)?;
        slot.running.as_mut().filter(|_| slot.generation == id.generation)
    }

    /// Takes it out. What it held is still held for those that wait: [`Self::release`] it.
    pub(crate) fn remove(&mut self, id: OperationId) -> Option<Running> {
        let slot = self.slots.get_mut(usize::try_from(id.index).ok()?)?;
        if slot.generation != id.generation {
            return None;
        }
        let running = slot.running.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.index);
        self.exclusive = self.exclusive.saturating_sub(usize::from(running.hold.is_exclusive()));
        self.waiting = self.waiting.saturating_sub(usize::from(running.is_waiting()));
        Some(running)
    }

    /// `gone` was removed: gives those that wait for nobody else, in the order they came.
    pub(crate) fn release(&mut self, gone: &Running) -> Vec<OperationId> {
        if self.waiting == 0 || gone.hold == Hold::Nothing {
            return Vec::new();
        }
        let mut ready = Vec::new();
        for (id, running) in self.iter_mut() {
            // Those that came before it did not count it.
            if running.is_waiting()
                && running.arrival > gone.arrival
                && running.hold.conflicts(&gone.hold)
            {
                running.blockers = running.blockers.saturating_sub(1);
                if !running.is_waiting() {
                    ready.push((running.arrival, id));
                }
            }
        }
        self.waiting = self.waiting.saturating_sub(ready.len());
        ready.sort_unstable();
        ready.into_iter().map(|(_, id)| id).collect()
    }

    /// The live operations, by index.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (OperationId, &Running)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let index = u32::try_from(index).ok()?;
            let id = OperationId { index, generation: slot.generation };
            slot.running.as_ref().map(|running| (id, running))
        })
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (OperationId, &mut Running)> {
        self.slots.iter_mut().enumerate().filter_map(|(index, slot)| {
            let index = u32::try_from(index).ok()?;
            let id = OperationId { index, generation: slot.generation };
            slot.running.as_mut().map(|running| (id, running))
        })
    }

    /// Operations that handlers have.
    pub(crate) fn at_handlers(&self) -> usize {
        self.slots.len().saturating_sub(self.free.len()).saturating_sub(self.waiting)
    }

    /// Operations that wait for others.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }
}
