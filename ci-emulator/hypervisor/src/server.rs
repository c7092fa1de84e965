//! The server's end of adapters whose clients are in this process.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use lunar_pcie::{AddressSpace, HintLine};
use lunar_platform::{
    Hypervisor, HypervisorError, HypervisorEvent, HypervisorOperation, HypervisorRequest, Sge,
    UnitAddress,
};
use lunar_vscsi::descriptor::COPY_BYTES_MAX;
use lunar_vscsi::hcall::code;
use rustix::event::epoll;

use crate::pair::{Pair, lock};

/// Returns that may wait to be polled.
const RETURNS_MAX: usize = 4096;

/// The server's end of one adapter pair, to be given to an [`EmulatedHypervisor`].
#[derive(Debug)]
pub struct ServerAdapter {
    pub(crate) unit: UnitAddress,
    pub(crate) pair: Arc<Mutex<Pair>>,
    pub(crate) line: HintLine,
}

/// One poll group's hypervisor. A call is carried out when it is submitted; its return is an event.
///
/// When it is dropped, the partition that it served has crashed: its queues are freed, and clients hear of it.
#[derive(Debug)]
pub struct EmulatedHypervisor {
    space: AddressSpace,
    adapters: Vec<ServerAdapter>,
    returns: VecDeque<HypervisorEvent>,
    /// Where polling goes on, so that no adapter starves the others.
    next: usize,
    waits: OwnedFd,
}

impl EmulatedHypervisor {
    /// A hypervisor with these adapters, whose copies use memory registered in `space`.
    ///
    /// # Errors
    /// When there is no descriptor to wait on.
    pub fn new(space: AddressSpace, adapters: Vec<ServerAdapter>) -> io::Result<Self> {
        let waits = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for adapter in &adapters {
            epoll::add(
                &waits,
                adapter.line.fd(),
                epoll::EventData::new_u64(0),
                epoll::EventFlags::IN,
            )?;
        }
        let returns = VecDeque::with_capacity(RETURNS_MAX);
        Ok(Self { space, adapters, returns, next: 0, waits })
    }

    /// Copies between the client's window and the local range; gives the return code.
    fn copy(&mut self, index: usize, client_address: u64, local: Sge, to_client: bool) -> i64 {
        let own_end = if to_client { code::SOURCE_PARM } else { code::DEST_PARM };
        if local.length > COPY_BYTES_MAX {
            return code::PARAMETER;
        }
        let Some(own) = self.space.resolve(local.key, local.address, local.length.into()) else {
            return own_end;
        };
        let pair = lock(&self.adapters[index].pair);
        let ranges = match pair.window(client_address, local.length.into(), to_client) {
            Ok(ranges) => ranges,
            Err(code) => return code,
        };
        let mut at = 0;
        for (place, bytes) in ranges {
            // Not more than a page.
            let length = bytes as usize;
            let copied = if to_client {
                own.copy_out(at, pair.memory(), place, length)
            } else {
                own.copy_in(at, pair.memory(), place, length)
            };
            if !copied {
                return own_end;
            }
            at += bytes;
        }
        code::SUCCESS
    }

    fn take_entry(&mut self) -> Option<HypervisorEvent> {
        for _ in 0..self.adapters.len() {
            let adapter = &self.adapters[self.next];
            self.next = (self.next + 1) % self.adapters.len();
            if let Some(entry) = lock(&adapter.pair).take_servers_entry() {
                return Some(HypervisorEvent::Entry { unit: adapter.unit, entry });
            }
        }
        None
    }
}

impl Hypervisor for EmulatedHypervisor {
    fn room(&self) -> usize {
        RETURNS_MAX - self.returns.len()
    }

    fn submit(&mut self, request: HypervisorRequest) -> Result<(), HypervisorError> {
        let HypervisorRequest { id, unit, operation } = request;
        let index = self.adapters.iter().position(|adapter| adapter.unit == unit);
        let index = index.ok_or(HypervisorError::UnknownUnit)?;
        if self.room() == 0 {
            return Err(HypervisorError::Full);
        }
        let pair = &self.adapters[index].pair;
        let code = match operation {
            HypervisorOperation::RegisterQueue => lock(pair).register_server(),
            HypervisorOperation::FreeQueue => lock(pair).free_server(),
            HypervisorOperation::SendEntry(entry) => lock(pair).send_to_client(entry),
            HypervisorOperation::CopyIn { client_address, local } => {
                self.copy(index, client_address, local, false)
            }
            HypervisorOperation::CopyOut { local, client_address } => {
                self.copy(index, client_address, local, true)
            }
            HypervisorOperation::ReadyForSuspend => lock(pair).set_ready_for_suspend(),
        };
        self.returns.push_back(HypervisorEvent::Returned { id, unit, code });
        Ok(())
    }

    fn poll(&mut self, events: &mut [HypervisorEvent]) -> usize {
        let mut count = 0;
        for place in events {
            let Some(event) = self.returns.pop_front().or_else(|| self.take_entry()) else { break };
            *place = event;
            count += 1;
        }
        count
    }

    fn arm(&mut self) -> bool {
        // A line that is drained before the queue is looked at cannot hide an entry.
        for adapter in &self.adapters {
            adapter.line.drain();
        }
        self.returns.is_empty()
            && !self.adapters.iter().any(|adapter| lock(&adapter.pair).servers_queue_holds_any())
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.waits.as_fd())
    }
}

impl Drop for EmulatedHypervisor {
    fn drop(&mut self) {
        for adapter in &self.adapters {
            lock(&adapter.pair).free_server();
        }
    }
}
