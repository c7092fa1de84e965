//! A poll group's thread: it spins while there is work and sleeps when there is none.

use lunar_platform::{Dma, Hca, Platform};
use lunar_target::{Activity, PollGroup};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{Clock, Stop, Wake};

pub(crate) struct Runner<P: Platform> {
    pub group: PollGroup<P>,
    pub clock: Clock,
    pub core: Option<usize>,
    pub poll: bool,
    pub spin_ns: u64,
    /// The control thread signals it after a message.
    pub wake: Wake,
    /// Signalled after messages to the control thread.
    pub control: Wake,
    pub stop: Stop,
}

impl<P: Platform> Runner<P> {
    pub(crate) fn run(mut self) {
        if let Some(core) = self.core {
            pin(core);
        }
        let mut busy_at = self.clock.now();
        let mut told = 0;
        while !self.stop.is_requested() {
            let now = self.clock.now();
            if self.group.tick(now) == Activity::Busy {
                busy_at = now;
            } else if self.poll || now.since(busy_at) < self.spin_ns {
                core::hint::spin_loop();
            } else {
                self.sleep();
            }
            if self.group.messages_told() != told {
                told = self.group.messages_told();
                self.control.signal();
            }
        }
    }

    /// Sleeps until something happens. Events are hints and may be lost, so the time is bounded: to
    /// 1 ms while anything is outstanding.
    fn sleep(&mut self) {
        let Some(longest_ns) = self.group.may_sleep() else { return };
        {
            let wake = self.wake.fd();
            let mut fds = [None, None, Some(wake)];
            fds[0] = self.group.hca().event_fd();
            fds[1] = self.group.dma().and_then(Dma::event_fd);
            // Absent descriptors are stood in for by the wake line, which does no harm twice.
            let mut fds = fds.map(|fd| PollFd::from_borrowed_fd(fd.unwrap_or(wake), PollFlags::IN));
            let timeout = Timespec {
                tv_sec: i64::try_from(longest_ns / 1_000_000_000).unwrap_or(0),
                tv_nsec: i64::try_from(longest_ns % 1_000_000_000).unwrap_or(0),
            };
            // An interrupted sleep is a short one.
            let _ = poll(&mut fds, Some(&timeout));
        }
        self.wake.clear();
        self.group.after_sleep(self.clock.now());
    }
}

fn pin(core: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        tracing::warn!(core, %error, "the poll group cannot be pinned to its core");
    }
}
