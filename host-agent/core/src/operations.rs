//! The operations that handlers have: fixed slots with generations, so that an outcome that comes
//! twice or too late finds nothing.

use lunar_handlers::RequestId;

use crate::effect::DataRange;
use crate::units::DeviceHandle;
use lunar_handlers::Request;

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

/// One operation at a handler.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running {
    pub(crate) ring: u16,
    pub(crate) token: u64,
    pub(crate) unit: u32,
    pub(crate) device: DeviceHandle,
    pub(crate) request: Request,
    pub(crate) data: Option<DataRange>,
    /// Of an older card epoch, or of a closed ring: nobody waits for its completion.
    pub(crate) orphaned: bool,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    running: Option<Running>,
}

/// The table. Grows to the most that was ever running at a time, which the rings' slots bound, and
/// stays so.
#[derive(Debug, Default)]
pub(crate) struct Operations {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Operations {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { slots: Vec::with_capacity(capacity), free: Vec::with_capacity(capacity) }
    }

    pub(crate) fn insert(&mut self, running: Running) -> OperationId {
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

    pub(crate) fn remove(&mut self, id: OperationId) -> Option<Running> {
        let slot = self.slots.get_mut(usize::try_from(id.index).ok()?)?;
        if slot.generation != id.generation {
            return None;
        }
        let running = slot.running.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.index);
        Some(running)
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

    pub(crate) fn count(&self) -> usize {
        self.slots.len().saturating_sub(self.free.len())
    }
}
