//! A disk in memory whose requests end late and out of order, for the simulator and for tests. Its
//! [`Medium`] outlives it, as a file outlives the agent that had it open.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::device::{
    BlockDevice, ByteRange, CancelAnswer, Ended, Geometry, Outcome, Request, RequestId, all_mapped,
};
use crate::memory::HostBuffer;
use crate::open::OpenError;
use crate::random::Random;

/// What is stored. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Medium {
    block_bytes: u32,
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl Medium {
    /// `blocks` zeroed blocks of `block_bytes` (a power of two, 512 to 65536).
    #[must_use]
    pub fn new(block_bytes: u32, blocks: usize) -> Self {
        let bytes = vec![0; blocks * block_bytes as usize];
        Self { block_bytes, bytes: Arc::new(Mutex::new(bytes)) }
    }

    /// Copies what is stored from byte `offset` on, for an oracle. `false` when out of bounds.
    #[must_use]
    pub fn peek(&self, offset: usize, out: &mut [u8]) -> bool {
        let bytes = self.lock();
        let stored = offset.checked_add(out.len()).and_then(|end| bytes.get(offset..end));
        stored.map(|stored| out.copy_from_slice(stored)).is_some()
    }

    /// Replaces what is stored from byte `offset` on. `false` when out of bounds.
    #[must_use]
    pub fn poke(&self, offset: usize, new: &[u8]) -> bool {
        let mut bytes = self.lock();
        let stored = offset.checked_add(new.len()).and_then(|end| bytes.get_mut(offset..end));
        stored.map(|stored| stored.copy_from_slice(new)).is_some()
    }

    /// Makes it `blocks` long; new blocks are zeroed. Disks over it notice at their next
    /// [`BlockDevice::resync_size`].
    pub fn resize(&self, blocks: usize) {
        self.lock().resize(blocks * self.block_bytes as usize, 0);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        // The bytes are valid whatever a panicking holder left.
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Waiting {
    id: RequestId,
    request: Request,
    data: Option<HostBuffer>,
    /// Polls until it is carried out.
    polls_left: u64,
    cancelled: bool,
}

/// See the module.
#[derive(Debug)]
pub struct MemoryDisk {
    medium: Medium,
    geometry: Geometry,
    waiting: Vec<Waiting>,
    random: Random,
    polls_max: u64,
}

impl MemoryDisk {
    /// A disk over `medium` that carries every request out at one of the next `polls_max` polls
    /// (1: the next one), chosen from `seed`. Data moves at that poll.
    #[must_use]
    pub fn new(medium: Medium, polls_max: u64, seed: u64) -> Self {
        let blocks = medium.lock().len() as u64 / u64::from(medium.block_bytes);
        let geometry = Geometry {
            block_bytes: medium.block_bytes,
            blocks,
            read_only: false,
            write_cache: true,
            fua: true,
            rotational: false,
            thin: false,
        };
        Self {
            medium,
            geometry,
            waiting: Vec::new(),
            random: Random::new(seed),
            polls_max: polls_max.max(1),
        }
    }

    /// Makes it thin provisioned: it takes [`Request::Unmap`].
    pub fn set_thin(&mut self, thin: bool) {
        self.geometry.thin = thin;
    }

    /// Makes it read-only, as a device with `read_only = 1`.
    pub fn set_read_only(&mut self, read_only: bool) {
        self.geometry.read_only = read_only;
    }

    fn carry_out(&self, request: &Request, data: Option<&HostBuffer>) -> Outcome {
        let range = match self.geometry.check(request, data) {
            Ok(range) => range,
            Err(outcome) => return outcome,
        };
        let Some(ByteRange { offset, length }) = range else {
            return Outcome::Done;
        };
        let mut bytes = self.medium.lock();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(stored) = bytes.get_mut(start..start.saturating_add(length)) else {
            return Outcome::OutOfRange;
        };
        let mut given = vec![0; data.map_or(0, |data| data.length() as usize)];
        if !data.is_none_or(|data| data.read(0, &mut given)) {
            return Outcome::HardwareError;
        }
        self.change(request, stored, &given, data)
    }

    /// `given` is what `data` holds.
    fn change(
        &self,
        request: &Request,
        stored: &mut [u8],
        given: &[u8],
        data: Option<&HostBuffer>,
    ) -> Outcome {
        let block_bytes = self.geometry.block_bytes as usize;
        let differs = |stored: &[u8], given: &[u8]| {
            let expected = given.iter().cycle().take(stored.len());
            let at = stored.iter().zip(expected).position(|(one, other)| one != other);
            at.map(|at| Outcome::Miscompare { offset: at as u64 })
        };
        match request {
            Request::Read { .. } => {
                if !data.is_some_and(|data| data.write(0, stored)) {
                    return Outcome::HardwareError;
                }
            }
            Request::Write { .. } | Request::WriteAndVerify { .. } => stored.copy_from_slice(given),
            Request::Compare { .. } => return differs(stored, given).unwrap_or(Outcome::Done),
            Request::CompareAndWrite { .. } => {
                let (expected, new) = given.split_at(stored.len());
                if let Some(miscompare) = differs(stored, expected) {
                    return miscompare;
                }
                stored.copy_from_slice(new);
            }
            Request::OrWrite { .. } => {
                stored.iter_mut().zip(given).for_each(|(one, other)| *one |= other);
            }
            Request::WriteSame { .. } if !given.is_empty() => {
                stored.chunks_mut(block_bytes).for_each(|block| block.copy_from_slice(given));
            }
            Request::WriteSame { .. } | Request::Unmap { .. } => stored.fill(0),
            Request::LbaStatus { lba, blocks } => return all_mapped(*lba, *blocks, data),
            Request::Prefetch { .. } | Request::Flush => {}
        }
        Outcome::Done
    }
}

impl BlockDevice for MemoryDisk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(&mut self, id: RequestId, request: Request, data: Option<HostBuffer>) {
        let polls_left = self.random.between(1, self.polls_max);
        self.waiting.push(Waiting { id, request, data, polls_left, cancelled: false });
    }

    fn cancel(&mut self, id: RequestId) -> CancelAnswer {
        let found = self.waiting.iter_mut().find(|waiting| waiting.id == id && !waiting.cancelled);
        found.map_or(CancelAnswer::TooLate, |waiting| {
            waiting.cancelled = true;
            waiting.polls_left = 1;
            CancelAnswer::Cancelled
        })
    }

    fn poll(&mut self, ended: &mut Vec<Ended>) {
        for waiting in &mut self.waiting {
            waiting.polls_left = waiting.polls_left.saturating_sub(1);
        }
        let (due, waiting) =
            std::mem::take(&mut self.waiting).into_iter().partition(|one| one.polls_left == 0);
        self.waiting = waiting;
        let due: Vec<Waiting> = due;
        for one in due {
            let outcome = if one.cancelled {
                Outcome::Cancelled
            } else {
                self.carry_out(&one.request, one.data.as_ref())
            };
            ended.push((one.id, outcome));
        }
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn outstanding(&self) -> usize {
        self.waiting.len()
    }

    fn resync_size(&mut self) -> Result<Vec<String>, OpenError> {
        let bytes = self.medium.lock().len() as u64;
        self.geometry.blocks = bytes / u64::from(self.geometry.block_bytes);
        Ok(Vec::new())
    }
}
