//! The server's end of one adapter whose client sits behind a bridge: a Unix stream on which the bridge
//! plays the hypervisor for its client, and we for the server.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use lunar_pcie::AddressSpace;
use lunar_platform::{
    Hypervisor, HypervisorError, HypervisorEvent, HypervisorOperation, HypervisorRequest, Sge,
    UnitAddress,
};
use lunar_vscsi::crq::{Entry, TransportEvent};
use lunar_vscsi::descriptor::COPY_BYTES_MAX;
use lunar_vscsi::hcall::code;

use crate::frame::{self, FromBridge, ToBridge};

/// Calls that the bridge may not have answered yet.
const CALLS_MAX: usize = 256;
/// Bytes that may wait for room in the socket before no more calls are taken.
const OUTBOX_BYTES_MAX: usize = 4 << 20;
/// Bytes that are read at a time.
const READ_BYTES: usize = 256 * 1024;

/// A call that the bridge has not answered yet.
#[derive(Clone, Copy, Debug)]
enum Call {
    /// A read of nothing behind `O`: once it is answered, the bridge has said whether its client has a queue.
    Register {
        id: u64,
    },
    CopyIn {
        id: u64,
        local: Sge,
    },
    CopyOut {
        id: u64,
    },
    Send {
        id: u64,
    },
    /// A transport event, which we send for ourselves.
    TransportEvent,
}

/// The hypervisor of one adapter, whose client a bridge serves.
///
/// When the bridge goes or speaks nonsense, the client counts as failed: FF01 arrives, and what was called
/// comes back with H_CLOSED or H_PERMISSION. A new connection is a new [`SocketHypervisor`]; dropping it tells
/// the client that our queue is gone.
#[derive(Debug)]
pub struct SocketHypervisor {
    unit: UnitAddress,
    space: AddressSpace,
    stream: Option<UnixStream>,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    calls: VecDeque<Call>,
    events: VecDeque<HypervisorEvent>,
    registered: bool,
    client_registered: bool,
}

impl SocketHypervisor {
    /// Connects to the bridge that listens at `path`. Copies use memory registered in `space`.
    ///
    /// # Errors
    /// What connect(2) says.
    pub fn connect(unit: UnitAddress, space: AddressSpace, path: &Path) -> io::Result<Self> {
        Self::over(unit, space, UnixStream::connect(path)?)
    }

    /// The same over a connected stream.
    ///
    /// # Errors
    /// When the stream cannot be made non-blocking.
    pub fn over(unit: UnitAddress, space: AddressSpace, stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            unit,
            space,
            stream: Some(stream),
            inbox: Vec::new(),
            outbox: Vec::new(),
            calls: VecDeque::new(),
            events: VecDeque::new(),
            registered: false,
            client_registered: false,
        })
    }

    /// Whether the bridge is there.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.stream.is_some()
    }

    /// Makes the client's next H_SEND_CRQ return `code`.
    pub fn refuse_clients_send(&mut self, code: i64) {
        frame::encode(ToBridge::Refuse(code), &mut self.outbox);
        self.flush();
    }

    fn returned(&mut self, id: u64, code: i64) {
        self.events.push_back(HypervisorEvent::Returned { id, unit: self.unit, code });
    }

    fn arrived(&mut self, entry: [u8; 16]) {
        if self.registered {
            self.events.push_back(HypervisorEvent::Entry { unit: self.unit, entry });
        }
    }

    fn register(&mut self, id: u64) -> Option<i64> {
        if self.registered {
            return Some(code::RESOURCE);
        }
        if self.stream.is_none() {
            return Some(code::HARDWARE);
        }
        self.registered = true;
        frame::encode(ToBridge::Open(true), &mut self.outbox);
        // A client whose H_REG_CRQ found us closed waits for our INIT. One that comes after this sends its own.
        self.call(Call::Register { id }, ToBridge::Read { address: 0, bytes: 0 });
        None
    }

    fn free(&mut self) -> i64 {
        if !self.registered {
            return code::NOT_FOUND;
        }
        self.registered = false;
        if self.client_registered && self.stream.is_some() {
            let event = Entry::transport(TransportEvent::PartnerDeregistered).to_bytes();
            self.call(Call::TransportEvent, ToBridge::Send(event));
        }
        frame::encode(ToBridge::Open(false), &mut self.outbox);
        code::SUCCESS
    }

    fn call(&mut self, call: Call, frame: ToBridge<'_>) {
        frame::encode(frame, &mut self.outbox);
        self.calls.push_back(call);
    }

    /// Gives the return code where the bridge need not be asked, as do the copies.
    fn send(&mut self, id: u64, entry: [u8; 16]) -> Option<i64> {
        if !self.registered {
            return Some(code::NOT_FOUND);
        }
        if self.stream.is_none() {
            return Some(code::CLOSED);
        }
        self.call(Call::Send { id }, ToBridge::Send(entry));
        None
    }

    fn copy_in(&mut self, id: u64, address: u64, local: Sge) -> Option<i64> {
        let bytes = local.length;
        if let Some(code) = self.copy_fault(local) {
            return Some(code);
        }
        if self.space.resolve(local.key, local.address, bytes.into()).is_none() {
            return Some(code::DEST_PARM);
        }
        self.call(Call::CopyIn { id, local }, ToBridge::Read { address, bytes });
        None
    }

    fn copy_out(&mut self, id: u64, address: u64, local: Sge) -> Option<i64> {
        if let Some(code) = self.copy_fault(local) {
            return Some(code);
        }
        let mut bytes = vec![0; local.length as usize];
        let own = self.space.resolve(local.key, local.address, local.length.into());
        if !own.is_some_and(|own| own.read(0, &mut bytes)) {
            return Some(code::SOURCE_PARM);
        }
        self.call(Call::CopyOut { id }, ToBridge::Write { address, bytes: &bytes });
        None
    }

    fn copy_fault(&self, local: Sge) -> Option<i64> {
        if self.stream.is_none() {
            return Some(code::PERMISSION);
        }
        (local.length > COPY_BYTES_MAX).then_some(code::PARAMETER)
    }

    /// Writes as much of the outbox as the socket takes.
    fn flush(&mut self) {
        let Some(mut stream) = self.stream.as_ref() else { return self.outbox.clear() };
        let mut sent = 0;
        while sent < self.outbox.len() {
            match stream.write(&self.outbox[sent..]) {
                Ok(0) => return self.lose_bridge(),
                Ok(bytes) => sent += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return self.lose_bridge(),
            }
        }
        self.outbox.drain(..sent);
    }

    /// Reads what has come, and takes the frames that are whole.
    fn receive(&mut self) {
        let mut chunk = vec![0; READ_BYTES];
        loop {
            let Some(mut stream) = self.stream.as_ref() else { return };
            match stream.read(&mut chunk) {
                Ok(0) => return self.lose_bridge(),
                Ok(bytes) => {
                    self.inbox.extend(&chunk[..bytes]);
                    self.take_frames();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => return self.lose_bridge(),
            }
        }
    }

    fn take_frames(&mut self) {
        let inbox = std::mem::take(&mut self.inbox);
        let mut at = 0;
        loop {
            match frame::parse(&inbox[at..]) {
                Ok(Some((frame, bytes))) => {
                    at += bytes;
                    if !self.take_frame(frame) {
                        return self.lose_bridge();
                    }
                }
                Ok(None) => break,
                Err(_) => return self.lose_bridge(),
            }
        }
        self.inbox = inbox;
        self.inbox.drain(..at);
    }

    /// Gives false for an answer to nothing, or to something else.
    fn take_frame(&mut self, frame: FromBridge<'_>) -> bool {
        match frame {
            FromBridge::Registered => self.client_registered = true,
            FromBridge::Freed => {
                self.client_registered = false;
                self.arrived(Entry::transport(TransportEvent::PartnerDeregistered).to_bytes());
            }
            // A server hears of it only by what the client sends next.
            FromBridge::Enabled => {}
            FromBridge::Entry(entry) => self.arrived(entry),
            FromBridge::Read(_) | FromBridge::Wrote(_) | FromBridge::Sent(_) => {
                return self.take_answer(frame);
            }
        }
        true
    }

    fn take_answer(&mut self, frame: FromBridge<'_>) -> bool {
        match (self.calls.front().copied(), frame) {
            (Some(Call::Register { id }), FromBridge::Read(_)) => {
                let is_there = self.client_registered;
                self.returned(id, if is_there { code::SUCCESS } else { code::CLOSED });
            }
            (Some(Call::CopyIn { id, local }), FromBridge::Read(bytes)) => {
                let code = bytes.map_or(code::SOURCE_PARM, |bytes| self.put(local, bytes));
                self.returned(id, code);
            }
            (Some(Call::CopyOut { id }), FromBridge::Wrote(written)) => {
                self.returned(id, if written { code::SUCCESS } else { code::DEST_PARM });
            }
            (Some(Call::Send { id }), FromBridge::Sent(code)) => self.returned(id, code),
            (Some(Call::TransportEvent), FromBridge::Sent(_)) => {}
            // The call comes back with the others when the bridge is given up.
            _ => return false,
        }
        self.calls.pop_front();
        true
    }

    /// Puts what was read into its place; gives the return code.
    fn put(&mut self, local: Sge, bytes: &[u8]) -> i64 {
        let own = self.space.resolve(local.key, local.address, local.length.into());
        let whole = bytes.len() == local.length as usize;
        if whole && own.is_some_and(|own| own.write(0, bytes)) {
            code::SUCCESS
        } else {
            code::DEST_PARM
        }
    }

    fn lose_bridge(&mut self) {
        self.stream = None;
        self.inbox.clear();
        self.outbox.clear();
        self.client_registered = false;
        for call in std::mem::take(&mut self.calls) {
            match call {
                Call::CopyIn { id, .. } | Call::CopyOut { id } => {
                    self.returned(id, code::PERMISSION);
                }
                Call::Register { id } | Call::Send { id } => self.returned(id, code::CLOSED),
                Call::TransportEvent => {}
            }
        }
        self.arrived(Entry::transport(TransportEvent::PartnerFailed).to_bytes());
    }
}

impl Hypervisor for SocketHypervisor {
    fn room(&self) -> usize {
        if self.outbox.len() > OUTBOX_BYTES_MAX {
            return 0;
        }
        CALLS_MAX.saturating_sub(self.calls.len())
    }

    fn submit(&mut self, request: HypervisorRequest) -> Result<(), HypervisorError> {
        if request.unit != self.unit {
            return Err(HypervisorError::UnknownUnit);
        }
        if self.room() == 0 {
            return Err(HypervisorError::Full);
        }
        let id = request.id;
        let code = match request.operation {
            HypervisorOperation::RegisterQueue => self.register(id),
            HypervisorOperation::FreeQueue => Some(self.free()),
            HypervisorOperation::SendEntry(entry) => self.send(id, entry),
            HypervisorOperation::CopyIn { client_address, local } => {
                self.copy_in(id, client_address, local)
            }
            HypervisorOperation::CopyOut { local, client_address } => {
                self.copy_out(id, client_address, local)
            }
            // A bridge suspends nobody.
            HypervisorOperation::ReadyForSuspend => Some(code::SUCCESS),
        };
        if let Some(code) = code {
            self.returned(id, code);
        }
        self.flush();
        Ok(())
    }

    fn poll(&mut self, events: &mut [HypervisorEvent]) -> usize {
        if self.events.is_empty() {
            self.flush();
            self.receive();
        }
        let count = events.len().min(self.events.len());
        for (place, event) in events.iter_mut().zip(self.events.drain(..count)) {
            *place = event;
        }
        count
    }

    fn arm(&mut self) -> bool {
        self.flush();
        self.receive();
        self.events.is_empty()
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.stream.as_ref().map(AsFd::as_fd)
    }
}
