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

use crate::device::{CancelAnswer, Outcome, RequestId};
use crate::engine::withdraw;
use crate::running::{Call, Running};

/// Requests the kernel holds at a time; more wait here. Deep enough for an NVMe disk, and the
/// completion queue (twice as long) can never overflow.
const IN_KERNEL_MAX: u32 = 256;

/// Submissions in one poll: what is in the page cache is done by then, so a request over a whole disk
/// would never let the caller go.
const ROUNDS_MAX: u32 = 4;

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
    /// Requests that ended without the kernel: cancelled, or with nothing to call for.
    ended: Vec<(Running, Outcome)>,
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
        let codes = [
            opcode::Read::CODE,
            opcode::Write::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
            opcode::Fadvise::CODE,
        ];
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
            ended: Vec::new(),
        })
    }

    pub(crate) fn submit(&mut self, running: Running) {
        self.waiting.push_back(running);
    }

    /// Takes back what the kernel was not told about. What it was told about, it may be doing: that
    /// ends with the call under way, where the request allows it.
    pub(crate) fn cancel(&mut self, id: RequestId) -> CancelAnswer {
        if let Some(running) = withdraw(&mut self.waiting, id) {
            self.ended.push((running, Outcome::Cancelled));
            self.wake();
            return CancelAnswer::Cancelled;
        }
        let mut out = self.in_kernel.iter_mut().flatten();
        if out.any(|running| running.id == id && running.stop(true)) {
            CancelAnswer::Cancelled
        } else {
            CancelAnswer::TooLate
        }
    }

    pub(crate) fn poll(&mut self, ended: &mut Vec<(Running, Outcome)>) {
        // Before the look at the ring, so that a completion after it makes the descriptor readable
        // again. EAGAIN: nothing had come.
        let _ = rustix::io::read(&self.completed, &mut [0; 8]);
        ended.append(&mut self.ended);
        self.reap(ended);
        for _ in 0..ROUNDS_MAX {
            if !self.push() {
                break;
            }
            if self.ring.submit().is_err() {
                // EAGAIN, EBUSY, EINTR: the entries stay in the ring for the next poll.
                self.wake();
                return;
            }
            // Reads from the page cache have ended by now.
            self.reap(ended);
        }
        ended.append(&mut self.ended);
        if !self.waiting.is_empty() && !self.free.is_empty() {
            // The other devices' turn; then on.
            self.wake();
        }
    }

    pub(crate) fn event_fd(&self) -> BorrowedFd<'_> {
        self.completed.as_fd()
    }

    pub(crate) fn outstanding(&self) -> usize {
        self.kernel_count() + self.waiting.len() + self.ended.len()
    }

    fn kernel_count(&self) -> usize {
        self.in_kernel.len() - self.free.len()
    }

    pub(crate) fn wake(&self) {
        // It can fail only with the counter at its limit, and then the descriptor is readable.
        let _ = rustix::io::write(&self.completed, &1_u64.to_ne_bytes());
    }

    /// Moves waiting requests to the submission queue; whether there is anything for the kernel.
    fn push(&mut self) -> bool {
        while let Some(slot) = self.free.last().copied() {
            let Some(running) = self.waiting.pop_front() else {
                break;
            };
            let Some(call) = running.call() else {
                self.ended.push((running, Outcome::HardwareError));
                continue;
            };
            let entry = entry_for(&self.file, &call).user_data(slot as u64);
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

    fn reap(&mut self, ended: &mut Vec<(Running, Outcome)>) {
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
                Some(outcome) => ended.push((running, outcome)),
                // The rest of a short transfer comes first, the next piece in its turn.
                None if running.is_long() => self.waiting.push_back(running),
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

fn entry_for(file: &File, call: &Call) -> squeue::Entry {
    let file = types::Fd(file.as_raw_fd());
    match call {
        Call::Read { window, offset } => {
            opcode::Read::new(file, window.pointer(), window.length()).offset(*offset).build()
        }
        Call::Write { window, offset, durable } => {
            let flags = if *durable { libc::RWF_DSYNC } else { 0 };
            opcode::Write::new(file, window.pointer(), window.length())
                .offset(*offset)
                .rw_flags(flags)
                .build()
        }
        Call::Sync => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
        Call::Allocate { mode, offset, length } => {
            let mode = mode.bits().cast_signed();
            opcode::Fallocate::new(file, *length).offset(*offset).mode(mode).build()
        }
        Call::Advise { offset, length } => {
            let length = libc::off_t::try_from(*length).unwrap_or(libc::off_t::MAX);
            opcode::Fadvise::new(file, length, libc::POSIX_FADV_WILLNEED).offset(*offset).build()
        }
    }
}
