//! The hypervisor half of one VSCSI adapter whose client is a real kernel in an emulated machine. The machine is
//! stopped where the kernel makes its hypervisor calls: those about the adapter's queue are answered here, those that
//! change its window are noted, and all others are left to the machine. The server is at the other end of a socket.
//!
//! What the client and the server say to each other is theirs; nothing here knows SCSI, SRP or datagrams.

use std::collections::VecDeque;
use std::fmt::Arguments;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use anyhow::Result;
use lunar_pcie::HintLine;
use lunar_vscsi::crq::{Entry, Incoming, TransportEvent};
use lunar_vscsi::hcall::code;
use rustix::event::{PollFd, PollFlags, poll};

use super::client::Client;
use super::gdb::Gdb;
use super::link::{FromServer, Link, ToServer};
use super::qtest::Qtest;

/// Tokens of hypervisor calls (PAPR, hypervisor call functions).
mod token {
    pub const PUT_TCE: u64 = 0x20;
    pub const REG_CRQ: u64 = 0xfc;
    pub const FREE_CRQ: u64 = 0x100;
    pub const VIO_SIGNAL: u64 = 0x104;
    pub const SEND_CRQ: u64 = 0x108;
    pub const STUFF_TCE: u64 = 0x138;
    pub const PUT_TCE_INDIRECT: u64 = 0x13c;
    pub const ENABLE_CRQ: u64 = 0x2b0;
}

/// Bytes of an instruction.
const INSTRUCTION_BYTES: u64 = 4;

/// What happens to a client or its adapter without either's doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The partner is moved to another machine: FF06, and a queue that rests until H_ENABLE_CRQ.
    Migration,
    /// The next command of the client is lost.
    LostCommand,
    /// The next two H_SEND_CRQ of the client return H_CLOSED.
    Refusals,
}

/// Where faults are asked for, from any thread.
#[derive(Clone)]
pub struct Faults {
    sender: Sender<Fault>,
    line: HintLine,
}

impl Faults {
    /// One that is asked for, and the end at which it is.
    pub fn new() -> std::io::Result<(Faults, FaultsAsked)> {
        let (sender, receiver) = channel();
        let line = HintLine::new()?;
        Ok((Faults { sender, line: line.clone() }, FaultsAsked { receiver, line }))
    }

    /// Asks for one. A bridge that has ended has no faults any more.
    pub fn ask(&self, fault: Fault) {
        let _ = self.sender.send(fault);
        self.line.signal();
    }
}

/// The bridge's end of [`Faults`].
pub struct FaultsAsked {
    receiver: Receiver<Fault>,
    line: HintLine,
}

/// Where and for whom the machine is stopped.
#[derive(Clone, Copy, Debug)]
pub struct Adapter {
    /// The adapter's unit address, which is also the name of its window.
    pub unit: u64,
    /// The address of the kernel's instruction before the one that calls the hypervisor; it does nothing.
    pub before_call: u64,
    /// The bus address at which a store is the adapter's interrupt.
    pub interrupt: u64,
}

/// The bridge between a client in a machine and a server on a socket.
pub struct Bridge<W: Write> {
    adapter: Adapter,
    gdb: Gdb,
    qtest: Qtest,
    client: Client,
    listener: UnixListener,
    server: Option<Link>,
    /// The server has a queue.
    is_open: bool,
    /// What sends of the client are to return, in this order.
    refusals: VecDeque<i64>,
    /// How many commands of the client are to be lost.
    losses: u32,
    /// The client's queue rests until H_ENABLE_CRQ.
    is_resting: bool,
    faults: FaultsAsked,
    journal: W,
    started: Instant,
}

impl<W: Write> Bridge<W> {
    /// A bridge to the server that will connect to `listener`. The machine stands still until [`Bridge::run`]. What
    /// passes is written into `journal`.
    pub fn new(
        adapter: Adapter,
        gdb: Gdb,
        qtest: Qtest,
        client: Client,
        listener: UnixListener,
        faults: FaultsAsked,
        journal: W,
    ) -> Bridge<W> {
        Bridge {
            adapter,
            gdb,
            qtest,
            client,
            listener,
            server: None,
            is_open: false,
            refusals: VecDeque::new(),
            losses: 0,
            is_resting: false,
            faults,
            journal,
            started: Instant::now(),
        }
    }

    /// Runs the machine and serves its client until the machine ends.
    pub fn run(mut self) -> Result<()> {
        self.gdb.set_breakpoint(self.adapter.before_call)?;
        self.gdb.resume()?;
        loop {
            let server = self.server.as_ref().map(Link::fd);
            // One server at a time: the next one waits until this one has gone.
            let of_server = server.unwrap_or(std::os::fd::AsFd::as_fd(&self.listener));
            let mut waited = [
                PollFd::from_borrowed_fd(self.gdb.fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(of_server, PollFlags::IN),
                PollFd::from_borrowed_fd(self.faults.line.fd(), PollFlags::IN),
            ];
            match poll(&mut waited, None) {
                Err(rustix::io::Errno::INTR) => continue,
                polled => polled?,
            };
            let [from_machine, from_server, of_faults] =
                waited.map(|waited| !waited.revents().is_empty());
            if of_faults && self.faults.line.drain() {
                while let Ok(fault) = self.faults.receiver.try_recv() {
                    self.befall(fault)?;
                }
            }
            if from_server && self.server.is_none() {
                self.accept()?;
            } else if from_server {
                self.hear()?;
            }
            if from_machine {
                if !self.gdb.receive()? {
                    return Ok(());
                }
                while let Some(at_breakpoint) = self.gdb.take_stop()? {
                    self.stopped(at_breakpoint)?;
                }
            }
        }
    }

    fn stopped(&mut self, at_breakpoint: bool) -> Result<()> {
        if !at_breakpoint {
            return self.gdb.resume();
        }
        let call = self.gdb.arguments()?;
        let result = self.call(call)?;
        let instructions = if result.is_some() { 2 } else { 1 };
        let next = self.adapter.before_call + instructions * INSTRUCTION_BYTES;
        self.gdb.resume_at(next, result)
    }

    /// A call of the client; what it returns, where it is ours to answer.
    fn call(&mut self, call: [u64; 5]) -> Result<Option<i64>> {
        let [token, unit, second, third, fourth] = call;
        if unit != self.adapter.unit {
            return Ok(None);
        }
        let result = match token {
            token::PUT_TCE => {
                self.client.map(second, 1, |_| third);
                return Ok(None);
            }
            token::STUFF_TCE => {
                self.client.map(second, fourth, |_| third);
                return Ok(None);
            }
            token::PUT_TCE_INDIRECT => {
                let list: Vec<u64> = (0..fourth.min(512))
                    .map(|page| self.client.word(third.wrapping_add(8 * page)).unwrap_or(0))
                    .collect();
                self.client.map(second, list.len() as u64, |page| list[page as usize]);
                return Ok(None);
            }
            token::REG_CRQ => self.register(second, third),
            token::FREE_CRQ => {
                self.is_resting = false;
                self.client.free();
                self.tell(&ToServer::Freed);
                code::SUCCESS
            }
            token::VIO_SIGNAL => {
                self.client.signals = second & 1 != 0;
                // Too many of them for the journal.
                return Ok(Some(code::SUCCESS));
            }
            token::SEND_CRQ => self.send(second, third),
            token::ENABLE_CRQ => {
                self.is_resting = false;
                self.tell(&ToServer::Enabled);
                code::SUCCESS
            }
            _ => return Ok(None),
        };
        self.note(format_args!("call {token:#x} {second:016x} {third:016x} -> {result}"));
        Ok(Some(result))
    }

    fn register(&mut self, address: u64, bytes: u64) -> i64 {
        match self.client.register(address, bytes) {
            code::SUCCESS => {
                self.tell(&ToServer::Registered { address, bytes });
                if self.is_open { code::SUCCESS } else { code::CLOSED }
            }
            refused => refused,
        }
    }

    fn send(&mut self, high: u64, low: u64) -> i64 {
        if let Some(refused) = self.refusals.pop_front() {
            return refused;
        }
        if self.client.queue().is_none() {
            return code::NOT_FOUND;
        }
        if !self.is_open || self.is_resting {
            return code::CLOSED;
        }
        let entry = Entry::from_words(high, low);
        if self.losses > 0 && matches!(entry.read(), Incoming::Request(_)) {
            self.losses -= 1;
            return code::SUCCESS;
        }
        self.tell(&ToServer::Entry(entry.to_bytes()));
        code::SUCCESS
    }

    fn befall(&mut self, fault: Fault) -> Result<()> {
        self.note(format_args!("fault {fault:?}"));
        match fault {
            Fault::Migration => {
                self.deliver(Entry::transport(TransportEvent::Migrated).to_bytes())?;
                self.is_resting = true;
            }
            Fault::LostCommand => self.losses += 1,
            Fault::Refusals => self.refusals.extend([code::CLOSED; 2]),
        }
        Ok(())
    }

    fn accept(&mut self) -> Result<()> {
        let (stream, _) = self.listener.accept()?;
        self.note(format_args!("server connected"));
        self.server = Some(Link::over(stream)?);
        if let Some((address, bytes)) = self.client.queue() {
            self.tell(&ToServer::Registered { address, bytes });
        }
        Ok(())
    }

    /// Takes what the server says. One that speaks nonsense is let go.
    fn hear(&mut self) -> Result<()> {
        let Some(server) = &mut self.server else { return Ok(()) };
        if !server.receive() {
            return self.lose_server("it ended");
        }
        loop {
            let Some(server) = &mut self.server else { return Ok(()) };
            match server.take() {
                Ok(Some(said)) => self.heard(said)?,
                Ok(None) => return Ok(()),
                Err(nonsense) => return self.lose_server(&format!("{nonsense:#}")),
            }
        }
    }

    fn heard(&mut self, said: FromServer) -> Result<()> {
        match said {
            FromServer::Open(open) => {
                self.note(format_args!("server open {open}"));
                self.is_open = open;
            }
            FromServer::Read { address, bytes } => {
                let read = self.client.read(address, bytes);
                self.note(format_args!("read {address:x} {bytes} -> {}", read.is_some()));
                self.tell(&ToServer::Read(read.as_deref()));
            }
            FromServer::Write { address, bytes } => {
                let written = self.client.write(address, &bytes);
                self.note(format_args!("write {address:x} {} -> {written}", bytes.len()));
                self.tell(&ToServer::Wrote(written));
            }
            FromServer::Send(entry) => {
                let result = if self.is_resting { code::CLOSED } else { self.deliver(entry)? };
                self.tell(&ToServer::Sent(result));
            }
            FromServer::Refuse(code) => self.refusals.push_back(code),
        }
        Ok(())
    }

    /// An entry for the client, and the interrupt that tells it.
    fn deliver(&mut self, entry: [u8; 16]) -> Result<i64> {
        let result = self.client.deliver(entry);
        let (high, low) = Entry::from_bytes(entry).to_words();
        self.note(format_args!("entry {high:016x} {low:016x} -> {result}"));
        if result == code::SUCCESS && self.client.signals {
            self.qtest.store(self.adapter.interrupt, 0)?;
        }
        Ok(result)
    }

    /// Says something to the server, if it is there. That it goes meanwhile is found where it is listened to.
    fn tell(&mut self, what: &ToServer<'_>) {
        if let Some(server) = &mut self.server {
            let _ = server.say(what);
        }
    }

    /// The server has gone: to its client that is a queue that was freed.
    fn lose_server(&mut self, why: &str) -> Result<()> {
        self.note(format_args!("server gone: {why}"));
        self.server = None;
        self.refusals.clear();
        if std::mem::take(&mut self.is_open) {
            self.deliver(Entry::transport(TransportEvent::PartnerDeregistered).to_bytes())?;
        }
        Ok(())
    }

    fn note(&mut self, what: Arguments<'_>) {
        // A journal that cannot be written is missed by nobody but its reader.
        let _ = writeln!(self.journal, "{:9.3} {what}", self.started.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests;
