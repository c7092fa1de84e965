//! The engine of last resort: pread, pwritev2 and fdatasync, one after the other, at `poll`.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::io::Errno;

use crate::device::{CancelAnswer, Ended, Outcome, Request, RequestId};
use crate::engine::{Running, withdraw};

/// See the module.
pub(crate) struct Synchronous {
    file: Arc<File>,
    waiting: VecDeque<Running>,
    cancelled: Vec<RequestId>,
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
            Some(_) => {
                self.cancelled.push(id);
                CancelAnswer::Cancelled
            }
            None => CancelAnswer::TooLate,
        }
    }

    pub(crate) fn poll(&mut self, ended: &mut Vec<Ended>) {
        ended.extend(self.cancelled.drain(..).map(|id| (id, Outcome::Cancelled)));
        while let Some(mut running) = self.waiting.pop_front() {
            let outcome = loop {
                let result = self.call(&running);
                if let Some(outcome) = running.advance(result) {
                    break outcome;
                }
            };
            ended.push((running.id, outcome));
        }
    }

    pub(crate) fn outstanding(&self) -> usize {
        self.waiting.len() + self.cancelled.len()
    }

    fn call(&self, running: &Running) -> Result<usize, Errno> {
        let result = match (running.rest(), running.request) {
            (Some((rest, offset)), Request::Read { .. }) => rest.pread(&*self.file, offset),
            (Some((rest, offset)), Request::Write { .. }) => {
                rest.pwrite(&*self.file, offset, running.durable)
            }
            _ => self.file.sync_data().map(|()| 0),
        };
        result.map_err(|error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}
