//! The io_uring engine: one ring a device, submissions gathered until `poll`, data moved by the
//! kernel straight between the file and the arena.
//!
//! Here lives the one other place with raw pointers: what the kernel is told about windows. The
//! in-flight table owns every window until its completion came, so an arena cannot be unmapped
//! below the kernel.
#![allow(unsafe_code)] // a submission entry names memory that the kernel uses after the call

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use io_uring::{IoUring, Probe, opcode, squeue, types};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::device::{CancelAnswer, Ended, Outcome, Request, RequestId};
use crate::engine::{Running, withdraw};

/// Requests the kernel holds at a time; more wait here. Deep enough for an NVMe disk, and the
/// completion queue (twice as long) can never overflow.
const IN_KERNEL_MAX: u32 = 256;

/// See the module.
pub(crate) struct Uring {
    // Dropped in this order: the ring before the file and the table.
    ring: IoUring,
    file: Arc<File>,
    completed: OwnedFd,
    /// Requests the kernel holds, by the index in their user data.
    in_kernel: Vec<Option<Running>>,
    free: Vec<usize>,
    waiting: VecDeque<Running>,
    cancelled: Vec<RequestId>,
}

impl Uring {
    /// Sets a ring up for `file`.
    ///
    /// # Errors
    /// ENOSYS, EPERM where io_uring is not to be had; ENOSYS too for a kernel before 5.6, which
    /// lacks the operations.
    pub(crate) fn new(file: &Arc<File>) -> io::Result<Self> {
        let ring = IoUring::new(IN_KERNEL_MAX)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let codes = [opcode::Read::CODE, opcode::Write::CODE, opcode::Fsync::CODE];
        if !codes.iter().all(|code| probe.is_supported(*code)) {
            return Err(Errno::NOSYS.into());
        }
        let completed = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        ring.submitter().register_eventfd(completed.as_raw_fd())?;
        let slots = IN_KERNEL_MAX as usize;
        Ok(Self {
            ring,
            file: Arc::clone(file),
            completed,
            in_kernel: std::iter::repeat_with(|| None).take(slots).collect(),
            free: (0..slots).rev().collect(),
            waiting: VecDeque::with_capacity(slots),
            cancelled: Vec::new(),
        })
    }

    pub(crate) fn submit(&mut self, running: Running) {
        self.waiting.push_back(running);
    }

    /// Takes back what the kernel was not told about. What it was told about, it may be doing.
    pub(crate) fn cancel(&mut self, id: RequestId) -> CancelAnswer {
        match withdraw(&mut self.waiting, id) {
            Some(_) => {
                self.cancelled.push(id);
                self.wake();
                CancelAnswer::Cancelled
            }
            None => CancelAnswer::TooLate,
        }
    }

    pub(crate) fn poll(&mut self, ended: &mut Vec<Ended>) {
        // Before the look at the ring, so that a completion after it makes the descriptor readable
        // again. EAGAIN: nothing had come.
        let _ = rustix::io::read(&self.completed, &mut [0; 8]);
        ended.extend(self.cancelled.drain(..).map(|id| (id, Outcome::Cancelled)));
        self.reap(ended);
        while self.push() {
            if self.ring.submit().is_err() {
                // EAGAIN, EBUSY, EINTR: the entries stay in the ring for the next poll.
                self.wake();
                return;
            }
            // Reads from the page cache have ended by now.
            self.reap(ended);
        }
    }

    pub(crate) fn event_fd(&self) -> BorrowedFd<'_> {
        self.completed.as_fd()
    }

    pub(crate) fn outstanding(&self) -> usize {
        self.kernel_count() + self.waiting.len() + self.cancelled.len()
    }

    fn kernel_count(&self) -> usize {
        self.in_kernel.len() - self.free.len()
    }

    fn wake(&self) {
        // It can fail only with the counter at its limit, and then the descriptor is readable.
        let _ = rustix::io::write(&self.completed, &1_u64.to_ne_bytes());
    }

    /// Moves waiting requests to the submission queue; whether there is anything for the kernel.
    fn push(&mut self) -> bool {
        while let Some(slot) = self.free.last().copied() {
            let Some(running) = self.waiting.pop_front() else {
                break;
            };
            let entry = entry_for(&self.file, &running).user_data(slot as u64);
            // SAFETY: the entry names the file, which `self.file` keeps open, and a window of an
            // arena, which `running` in `self.in_kernel` keeps mapped until the completion of
            // `slot` was reaped; `Drop` waits for those that are still out.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            if pushed.is_err() {
                // Full of entries that the kernel did not take yet.
                self.waiting.push_front(running);
                break;
            }
            self.free.pop();
            self.in_kernel[slot] = Some(running);
        }
        !self.ring.submission().is_empty()
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        for completion in self.ring.completion() {
            let slot = usize::try_from(completion.user_data()).unwrap_or(usize::MAX);
            let Some(mut running) = self.in_kernel.get_mut(slot).and_then(Option::take) else {
                continue;
            };
            self.free.push(slot);
            let result = completion.result();
            let result = usize::try_from(result)
                .map_err(|_| Errno::from_raw_os_error(result.saturating_neg()));
            match running.advance(result) {
                Some(outcome) => ended.push((running.id, outcome)),
                None => self.waiting.push_front(running),
            }
        }
    }
}

impl Drop for Uring {
    /// Closing the ring does not stop the kernel, so this waits for what it still holds: closing a
    /// device means that no write of it comes later.
    fn drop(&mut self) {
        self.waiting.clear();
        while self.kernel_count() > 0 {
            match self.ring.submit_and_wait(1) {
                Ok(_) => self.reap(&mut Vec::new()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    // The kernel may still write into these windows: leave them mapped for good.
                    std::mem::forget(std::mem::take(&mut self.in_kernel));
                    return;
                }
            }
            self.waiting.clear();
        }
    }
}

fn entry_for(file: &File, running: &Running) -> squeue::Entry {
    let file = types::Fd(file.as_raw_fd());
    match (running.rest(), running.request) {
        (Some((rest, offset)), Request::Read { .. }) => {
            opcode::Read::new(file, rest.pointer(), rest.length()).offset(offset).build()
        }
        (Some((rest, offset)), Request::Write { .. }) => {
            let flags = if running.durable { libc::RWF_DSYNC } else { 0 };
            opcode::Write::new(file, rest.pointer(), rest.length())
                .offset(offset)
                .rw_flags(flags)
                .build()
        }
        _ => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
    }
}
