//! Decorator: remembers a CRC32C of every block that was written or read, and turns a read that
//! brings other bytes into a read error. Blocks that were changed in another way than by a write are
//! learnt anew. For tests and for distrust: it copies all data once.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

use crate::device::{BlockDevice, CancelAnswer, Ended, Geometry, Outcome, Request, RequestId};
use crate::memory::HostBuffer;
use crate::open::OpenError;

/// What is known of one block.
#[derive(Clone, Copy, Debug, Default)]
struct Remembered {
    /// `None`: a write failed, or overlapping writes ended in an unknown order.
    crc: Option<u32>,
    /// Counts the writes submitted to the block.
    version: u64,
    /// Writes to the block that have not ended.
    writes_outstanding: u32,
}

/// What was known of one block when a request was submitted.
#[derive(Clone, Copy, Debug)]
struct Expected {
    version: u64,
    /// No write to the block was outstanding.
    alone: bool,
    /// For a write: the CRC of its bytes.
    crc: Option<u32>,
}

#[derive(Debug)]
struct Checked {
    request: Request,
    data: Option<HostBuffer>,
    /// One for each block of the request.
    blocks: Vec<Expected>,
}

/// See the module.
#[derive(Debug)]
pub struct Verify<D> {
    device: D,
    remembered: BTreeMap<u64, Remembered>,
    outstanding: BTreeMap<RequestId, Checked>,
    /// Requests that change blocks in another way than a write does, with their ranges: about what
    /// they touch nothing is known until they ended.
    changing: BTreeMap<RequestId, (u64, u64)>,
    mismatches: u64,
}

impl<D: BlockDevice> Verify<D> {
    /// Wraps `device`. Nothing is known of what it holds already until it was read once.
    pub fn new(device: D) -> Self {
        Self {
            device,
            remembered: BTreeMap::new(),
            outstanding: BTreeMap::new(),
            changing: BTreeMap::new(),
            mismatches: 0,
        }
    }

    /// Blocks that came back with other bytes than were written or read before.
    #[must_use]
    pub fn mismatches(&self) -> u64 {
        self.mismatches
    }

    fn crc_of(&self, data: &HostBuffer, block: usize) -> Option<u32> {
        let block_bytes = self.device.geometry().block_bytes;
        let mut bytes = vec![0; block_bytes as usize];
        let skip = u32::try_from(block).ok()?.checked_mul(block_bytes)?;
        data.read(skip, &mut bytes).then(|| crc32c::crc32c(&bytes))
    }

    /// Forgets what was known of the blocks. Of those that no read or write has met, nothing is.
    fn forget(&mut self, (lba, blocks): (u64, u64)) {
        for known in self.remembered.range_mut(lba..lba.saturating_add(blocks)) {
            known.1.version += 1;
            known.1.crc = None;
        }
    }

    /// For a read or a write.
    fn expect(&mut self, request: &Request, data: Option<&HostBuffer>) -> Vec<Expected> {
        let Some((lba, blocks)) = request.range() else {
            return Vec::new();
        };
        let clear = !self
            .changing
            .values()
            .any(|(first, count)| *first < lba + blocks && lba < first.saturating_add(*count));
        let blocks = usize::try_from(blocks).unwrap_or(0);
        let mut expected = Vec::with_capacity(blocks);
        for block in 0..blocks {
            let is_write = matches!(request, Request::Write { .. });
            let crc = data.filter(|_| is_write).and_then(|data| self.crc_of(data, block));
            let known = self.remembered.entry(lba + block as u64).or_default();
            let alone = clear && known.writes_outstanding == 0;
            if is_write {
                known.version += 1;
                known.writes_outstanding += 1;
                known.crc = None;
            }
            expected.push(Expected { version: known.version, alone, crc });
        }
        expected
    }

    /// Checks or learns what `checked` brought; gives the outcome to report.
    fn settle(&mut self, checked: &Checked, outcome: Outcome) -> Outcome {
        let Some((lba, _)) = checked.request.range() else {
            return outcome;
        };
        let mut reported = outcome;
        for (block, expected) in checked.blocks.iter().enumerate() {
            let at = lba + block as u64;
            let is_write = matches!(checked.request, Request::Write { .. });
            let data = checked.data.as_ref().filter(|_| !is_write);
            let seen = data.and_then(|data| self.crc_of(data, block));
            let Some(known) = self.remembered.get_mut(&at) else {
                continue;
            };
            // No write overlapped the request: its bytes are what the block holds.
            let sole = expected.alone && known.version == expected.version;
            if is_write {
                known.writes_outstanding -= 1;
                if outcome == Outcome::Done && sole {
                    known.crc = expected.crc;
                }
                continue;
            }
            if outcome != Outcome::Done || !sole {
                continue;
            }
            match known.crc {
                None => known.crc = seen,
                Some(_) if seen == known.crc => {}
                Some(_) => {
                    self.mismatches += 1;
                    if reported == Outcome::Done {
                        reported = Outcome::ReadError { lba: at };
                    }
                }
            }
        }
        reported
    }
}

impl<D: BlockDevice> BlockDevice for Verify<D> {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn submit(&mut self, id: RequestId, request: Request, data: Option<HostBuffer>) {
        // What does not fit ends at the device and teaches nothing.
        if self.device.geometry().check(&request, data.as_ref()).is_ok() {
            match (request, request.range()) {
                (Request::Read { .. } | Request::Write { .. }, _) => {
                    let blocks = self.expect(&request, data.as_ref());
                    self.outstanding.insert(id, Checked { request, data: data.clone(), blocks });
                }
                (_, Some(range)) if request.writes() => {
                    self.forget(range);
                    self.changing.insert(id, range);
                }
                _ => {}
            }
        }
        self.device.submit(id, request, data);
    }

    fn cancel(&mut self, id: RequestId) -> CancelAnswer {
        self.device.cancel(id)
    }

    fn poll(&mut self, ended: &mut Vec<Ended>) {
        let first = ended.len();
        self.device.poll(ended);
        for (id, outcome) in ended.iter_mut().skip(first) {
            if let Some(checked) = self.outstanding.remove(id) {
                *outcome = self.settle(&checked, *outcome);
            } else if let Some(range) = self.changing.remove(id) {
                self.forget(range);
            }
        }
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.device.event_fd()
    }

    fn outstanding(&self) -> usize {
        self.device.outstanding()
    }

    fn resync_size(&mut self) -> Result<Vec<String>, OpenError> {
        self.device.resync_size()
    }
}
