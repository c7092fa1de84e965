//! Decorator: requests fail or hang by plan, as a bad medium, a full pool or a dead path would make
//! them.

use std::os::fd::BorrowedFd;

use crate::device::{BlockDevice, CancelAnswer, Ended, Geometry, Outcome, Request, RequestId};
use crate::memory::HostBuffer;
use crate::open::OpenError;

/// Which requests a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Reads and comparisons that touch the rule's blocks.
    Read,
    /// Whatever changes the rule's blocks ([`Request::writes`]).
    Write,
    /// Flushes; they touch every block.
    Flush,
}

/// What happens to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// They end with this outcome; the device does not see them.
    End(Outcome),
    /// They do not end until they are cancelled or [`Fault::release`] is called.
    Hang,
}

/// One line of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Which requests.
    pub operation: Operation,
    /// First block of the range.
    pub lba_first: u64,
    /// Last block of the range.
    pub lba_last: u64,
    /// What happens to them.
    pub effect: Effect,
    /// How many requests it still hits; `None` for all.
    pub remaining: Option<u32>,
}

impl Rule {
    fn hits(&self, request: &Request) -> bool {
        let operation = match request {
            Request::Flush => Operation::Flush,
            Request::Read { .. } | Request::Compare { .. } => Operation::Read,
            // What only asks about blocks does not go to the medium.
            Request::Prefetch { .. } | Request::LbaStatus { .. } => return false,
            _ => Operation::Write,
        };
        let touches = request.range().is_none_or(|(lba, blocks)| {
            let last = lba.saturating_add(blocks.saturating_sub(1));
            lba <= self.lba_last && last >= self.lba_first
        });
        operation == self.operation && touches && self.remaining != Some(0)
    }
}

/// See the module. The first rule that hits decides.
#[derive(Debug)]
pub struct Fault<D> {
    device: D,
    rules: Vec<Rule>,
    ended: Vec<Ended>,
    hanging: Vec<(RequestId, Request, Option<HostBuffer>)>,
}

impl<D: BlockDevice> Fault<D> {
    /// Wraps `device`.
    pub fn new(device: D, rules: Vec<Rule>) -> Self {
        Self { device, rules, ended: Vec::new(), hanging: Vec::new() }
    }

    /// Replaces the plan; what hangs goes on hanging.
    pub fn set_rules(&mut self, rules: Vec<Rule>) {
        self.rules = rules;
    }

    /// Gives what hangs to the device, in the order it came.
    pub fn release(&mut self) {
        for (id, request, data) in self.hanging.drain(..) {
            self.device.submit(id, request, data);
        }
    }
}

impl<D: BlockDevice> BlockDevice for Fault<D> {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn submit(&mut self, id: RequestId, request: Request, data: Option<HostBuffer>) {
        let Some(rule) = self.rules.iter_mut().find(|rule| rule.hits(&request)) else {
            return self.device.submit(id, request, data);
        };
        if let Some(remaining) = &mut rule.remaining {
            *remaining -= 1;
        }
        match rule.effect {
            Effect::End(outcome) => self.ended.push((id, outcome)),
            Effect::Hang => self.hanging.push((id, request, data)),
        }
    }

    fn cancel(&mut self, id: RequestId) -> CancelAnswer {
        match self.hanging.iter().position(|(hanging, ..)| *hanging == id) {
            Some(at) => {
                self.hanging.remove(at);
                self.ended.push((id, Outcome::Cancelled));
                CancelAnswer::Cancelled
            }
            None => self.device.cancel(id),
        }
    }

    fn poll(&mut self, ended: &mut Vec<Ended>) {
        ended.append(&mut self.ended);
        self.device.poll(ended);
    }

    /// None: what fails by plan makes no descriptor readable.
    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn outstanding(&self) -> usize {
        self.ended.len() + self.hanging.len() + self.device.outstanding()
    }

    fn resync_size(&mut self) -> Result<Vec<String>, OpenError> {
        self.device.resync_size()
    }
}
