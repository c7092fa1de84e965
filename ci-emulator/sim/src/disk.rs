//! What lies below an agent's disks: a medium that outlives agents, and a witness of every write
//! that lands on it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};

use lunar_handlers::memory_disk::{Medium, MemoryDisk};
use lunar_handlers::{
    BlockDevice, CancelAnswer, Ended, Geometry, HostBuffer, OpenError, Outcome, Request, RequestId,
};
use lunar_initiator::oracle::{Content, identify};

/// Bytes of a block of every unit.
pub const BLOCK_BYTES: u32 = 512;

/// One block that a write put on the medium.
#[derive(Clone, Copy, Debug)]
pub struct Landing {
    /// Handle of the unit.
    pub unit: u32,
    /// The block.
    pub lba: u64,
    /// What it says it is.
    pub content: Content,
}

/// The landings since the last look. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Landings(Arc<Mutex<Vec<Landing>>>);

impl Landings {
    /// What landed since the last call, in order.
    #[must_use]
    pub fn take(&self) -> Vec<Landing> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn push(&self, landing: Landing) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(landing);
    }
}

/// A memory disk whose writes are witnessed.
#[derive(Debug)]
pub struct Witnessed {
    disk: MemoryDisk,
    unit: u32,
    medium: Medium,
    landings: Landings,
    /// First block and number of blocks of the requests that change the medium, and whether each leaves in
    /// its blocks what says which they are.
    changes: BTreeMap<RequestId, (u64, u64, bool)>,
}

impl Witnessed {
    /// The disk of `unit` over `medium`.
    #[must_use]
    pub fn new(unit: u32, medium: &Medium, landings: &Landings, seed: u64) -> Self {
        let mut disk = MemoryDisk::new(medium.clone(), 2, seed);
        disk.set_thin(true);
        Self {
            disk,
            unit,
            medium: medium.clone(),
            landings: landings.clone(),
            changes: BTreeMap::new(),
        }
    }

    /// `others`: what else changed since the last look, in blocks that say nothing of themselves.
    fn witness(&self, lba: u64, blocks: u64, others: &[Range<u64>]) {
        let mut block = [0; BLOCK_BYTES as usize];
        // First and last: what is between came in the same copy.
        for at in [lba, lba + blocks.max(1) - 1] {
            if others.iter().any(|other| other.contains(&at)) {
                continue;
            }
            let offset = usize::try_from(at).unwrap_or(0) * block.len();
            if self.medium.peek(offset, &mut block) {
                let content = identify(&block);
                self.landings.push(Landing { unit: self.unit, lba: at, content });
            }
        }
    }
}

impl BlockDevice for Witnessed {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn submit(&mut self, id: RequestId, request: Request, data: Option<HostBuffer>) {
        // ORWRITE changes nothing here: what the runs send with it is zeros.
        let says_itself = match request {
            Request::Write { .. }
            | Request::WriteAndVerify { .. }
            | Request::CompareAndWrite { .. } => Some(true),
            Request::WriteSame { .. } | Request::Unmap { .. } => Some(false),
            _ => None,
        };
        if let (Some(says_itself), Some((lba, blocks))) = (says_itself, request.range()) {
            self.changes.insert(id, (lba, blocks, says_itself));
        }
        self.disk.submit(id, request, data);
    }

    fn cancel(&mut self, id: RequestId) -> CancelAnswer {
        self.disk.cancel(id)
    }

    fn poll(&mut self, ended: &mut Vec<Ended>) {
        let first = ended.len();
        self.disk.poll(ended);
        let mut done = Vec::new();
        for (id, outcome) in &ended[first..] {
            let change = self.changes.remove(id).filter(|_| *outcome == Outcome::Done);
            done.extend(change);
        }
        let silent = done.iter().filter(|(_, _, says_itself)| !says_itself);
        let silent: Vec<Range<u64>> = silent.map(|(lba, blocks, _)| *lba..lba + blocks).collect();
        for (lba, blocks, _) in done.into_iter().filter(|(_, _, says_itself)| *says_itself) {
            self.witness(lba, blocks, &silent);
        }
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn outstanding(&self) -> usize {
        self.disk.outstanding()
    }

    fn resync_size(&mut self) -> Result<Vec<String>, OpenError> {
        self.disk.resync_size()
    }
}
