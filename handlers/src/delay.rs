//! Decorator: requests end later than the device ended them, and out of order where the delays
//! differ. For tests of everything that must not depend on a fast or orderly medium.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::device::{BlockDevice, CancelAnswer, Ended, Geometry, Outcome, Request, RequestId};
use crate::memory::HostBuffer;
use crate::open::OpenError;
use crate::random::Random;

/// Virtual time in nanoseconds, set by whoever drives the device. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Clock(Arc<AtomicU64>);

impl Clock {
    /// Sets the time.
    pub fn set(&self, now_ns: u64) {
        self.0.store(now_ns, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How long a request is held back, drawn anew for each.
#[derive(Clone, Debug)]
pub enum Lateness {
    /// From `least` to `most` polls.
    Polls {
        /// Fewest polls; 0 ends it at the next.
        least: u64,
        /// Most polls.
        most: u64,
    },
    /// From `least_ns` to `most_ns` nanoseconds of `clock`.
    Time {
        /// The time that counts.
        clock: Clock,
        /// Shortest delay in nanoseconds.
        least_ns: u64,
        /// Longest delay in nanoseconds.
        most_ns: u64,
    },
}

#[derive(Debug)]
enum Stage {
    /// Not given to the device yet: until then it can be cancelled.
    Held {
        request: Request,
        data: Option<HostBuffer>,
    },
    Cancelled,
}

#[derive(Debug)]
struct Late {
    id: RequestId,
    due: u64,
    stage: Stage,
}

/// See the module. A request is held back *before* the device sees it, so a cancel finds it.
#[derive(Debug)]
pub struct Delay<D> {
    device: D,
    lateness: Lateness,
    random: Random,
    polls: u64,
    late: Vec<Late>,
}

impl<D: BlockDevice> Delay<D> {
    /// Wraps `device`; the same `seed` gives the same delays.
    pub fn new(device: D, lateness: Lateness, seed: u64) -> Self {
        Self { device, lateness, random: Random::new(seed), polls: 0, late: Vec::new() }
    }

    fn now(&self) -> u64 {
        match &self.lateness {
            Lateness::Polls { .. } => self.polls,
            Lateness::Time { clock, .. } => clock.now(),
        }
    }
}

impl<D: BlockDevice> BlockDevice for Delay<D> {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn submit(&mut self, id: RequestId, request: Request, data: Option<HostBuffer>) {
        let (least, most) = match self.lateness {
            Lateness::Polls { least, most } => (least, most),
            Lateness::Time { least_ns, most_ns, .. } => (least_ns, most_ns),
        };
        let due = self.now().saturating_add(self.random.between(least, most));
        self.late.push(Late { id, due, stage: Stage::Held { request, data } });
    }

    fn cancel(&mut self, id: RequestId) -> CancelAnswer {
        let now = self.now();
        let Some(late) = self.late.iter_mut().find(|late| late.id == id) else {
            return self.device.cancel(id);
        };
        if matches!(late.stage, Stage::Cancelled) {
            return CancelAnswer::TooLate;
        }
        late.stage = Stage::Cancelled;
        late.due = now;
        CancelAnswer::Cancelled
    }

    fn poll(&mut self, ended: &mut Vec<Ended>) {
        let now = self.now();
        let (mut due, late): (Vec<Late>, Vec<Late>) =
            std::mem::take(&mut self.late).into_iter().partition(|late| late.due <= now);
        self.late = late;
        self.polls += 1;
        due.sort_by_key(|late| late.due);
        for late in due {
            match late.stage {
                Stage::Held { request, data } => self.device.submit(late.id, request, data),
                Stage::Cancelled => ended.push((late.id, Outcome::Cancelled)),
            }
        }
        self.device.poll(ended);
    }

    /// None: the caller polls, because time may be virtual.
    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn outstanding(&self) -> usize {
        self.late.len() + self.device.outstanding()
    }

    fn resync_size(&mut self) -> Result<Vec<String>, OpenError> {
        self.device.resync_size()
    }
}
