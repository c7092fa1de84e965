//! The engine of last resort: one system call after the other, at `poll`.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::num::NonZero;
use std::sync::Arc;

use rustix::fs::{Advice, fadvise, fallocate};
use rustix::io::Errno;

use crate::device::{CancelAnswer, Outcome, RequestId};
use crate::engine::withdraw;
use crate::running::{Call, Running};

/// See the module.
pub(crate) struct Synchronous {
    file: Arc<File>,
    waiting: VecDeque<Running>,
    cancelled: Vec<Running>,
}

impl Synchronous {
    pub(crate) fn new(file: &Arc<File>) -> Self {
        Self { file: Arc::clone(file), waiting: VecDeque::new(), cancelled: Vec::new() }
    }

    pub(crate) fn submit(&mut self, running: Running) {
        self.waiting.push_back(running);
    }

    pub(crate) fn cancel(&mut self, id: RequestId) -> CancelAnswer {
        match withdraw(&mut self.waiting, id) {
            Some(running) => {
                self.cancelled.push(running);
                CancelAnswer::Cancelled
            }
            None => CancelAnswer::TooLate,
        }
    }

    /// Ends every request that has not many calls, and makes one call for each of the others.
    pub(crate) fn poll(&mut self, ended: &mut Vec<(Running, Outcome)>) {
        ended.extend(self.cancelled.drain(..).map(|running| (running, Outcome::Cancelled)));
        for _ in 0..self.waiting.len() {
            let Some(mut running) = self.waiting.pop_front() else {
                break;
            };
            let outcome = loop {
                let outcome = match running.call() {
                    Some(call) => running.advance(self.make(call)),
                    None => Some(Outcome::HardwareError),
                };
                if outcome.is_some() || running.is_long() {
                    break outcome;
                }
            };
            match outcome {
                Some(outcome) => ended.push((running, outcome)),
                None => self.waiting.push_back(running),
            }
        }
    }

    pub(crate) fn outstanding(&self) -> usize {
        self.waiting.len() + self.cancelled.len()
    }

    fn make(&self, call: Call) -> Result<usize, Errno> {
        let file = &*self.file;
        let result = match call {
            Call::Read { window, offset } => window.pread(file, offset),
            Call::Write { window, offset, durable } => window.pwrite(file, offset, durable),
            Call::Sync => file.sync_data().map(|()| 0),
            Call::Allocate { mode, offset, length } => {
                return fallocate(file, mode, offset, length).map(|()| 0);
            }
            Call::Advise { offset, length } => {
                return fadvise(file, offset, NonZero::new(length), Advice::WillNeed).map(|()| 0);
            }
        };
        result.map_err(|error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}
