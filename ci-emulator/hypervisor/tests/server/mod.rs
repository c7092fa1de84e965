//! The least server there can be: an adapter of `lunar-vscsi` on any hypervisor, which lets the client in and
//! answers every command with GOOD.

use std::collections::BTreeMap;

use lunar_pcie::{AddressSpace, Registration, Segment};
use lunar_platform::{
    Hypervisor, HypervisorEvent, HypervisorOperation, HypervisorRequest, Sge, UnitAddress,
};
use lunar_srp::iu::encode_success;
use lunar_srp::login::{encode_reject, encode_response};
use lunar_vscsi::adapter::{Action, Actions, Adapter, Event, Reason, State, Taken};
use lunar_vscsi::crq::{Answer, CrqStatus, Entry, Request};
use lunar_vscsi::hcall::{Copied, Freed, Registered, Sent};
use lunar_vscsi::mad::{Mad, MadStatus, OsType, PartitionName, ServerPartition, Step};

pub const UNIT: UnitAddress = UnitAddress(0x3000_0000);
pub const REQUEST_LIMIT: u32 = 8;
/// Bytes of a request's place in the server's memory: its unit, and behind it a datagram's payload.
const SLOT_BYTES: u64 = 512;
const PAYLOAD_OFFSET: u64 = 256;
const SLOTS: u64 = 16;

/// The server's memory for requests, and the table in which it is registered.
pub struct ServerMemory {
    pub space: AddressSpace,
    segment: Segment,
    place: Registration,
}

impl ServerMemory {
    pub fn new() -> Self {
        let mut space = AddressSpace::new();
        let segment = Segment::anonymous((SLOTS * SLOT_BYTES) as usize).expect("memory");
        let place = space.register(&segment);
        Self { space, segment, place }
    }
}

/// What a call that is under way is for.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    Register,
    Free,
    OwnSend,
    Ready,
    Fetch(u64, Request),
    Payload(u64, Request, Mad),
    PutPayload(u64, Request, Mad),
    PutUnit(u64, Answer),
    Answer(u64),
}

/// The server.
pub struct Server<H> {
    pub hypervisor: H,
    pub adapter: Adapter,
    /// Why connections ended.
    pub over: Vec<Reason>,
    memory: ServerMemory,
    free: Vec<u64>,
    calls: BTreeMap<u64, Purpose>,
    next_id: u64,
}

impl<H: Hypervisor> Server<H> {
    pub fn new(hypervisor: H, memory: ServerMemory) -> Self {
        let partition = ServerPartition {
            name: PartitionName::new("lunar").expect("a name"),
            number: 1,
            os_type: OsType::AIX,
            transfer_bytes_max: 1 << 20,
            migration: true,
            reserve: true,
        };
        Self {
            hypervisor,
            adapter: Adapter::new(partition, REQUEST_LIMIT),
            over: Vec::new(),
            memory,
            free: (0..SLOTS).collect(),
            calls: BTreeMap::new(),
            next_id: 1,
        }
    }

    pub fn on(&mut self, event: Event) {
        let actions = self.adapter.on_event(event, 0);
        self.carry_out(actions);
    }

    fn carry_out(&mut self, actions: Actions) {
        for action in actions {
            match action {
                Action::Register => {
                    self.call(Purpose::Register, HypervisorOperation::RegisterQueue)
                }
                Action::Free => self.call(Purpose::Free, HypervisorOperation::FreeQueue),
                Action::Send(entry) => {
                    let operation = HypervisorOperation::SendEntry(entry.to_bytes());
                    self.call(Purpose::OwnSend, operation);
                }
                Action::Fetch(request) => self.fetch(request),
                Action::ReadyForSuspend => {
                    self.call(Purpose::Ready, HypervisorOperation::ReadyForSuspend);
                }
                Action::ConnectionOver(reason) => self.over.push(reason),
                // Every call comes back by itself, and no answer is sent twice here.
                Action::Abandon => {}
                Action::SendAgain(_) => panic!("no entry is sent twice here"),
                Action::GaveUp(_) => {}
            }
        }
    }

    fn call(&mut self, purpose: Purpose, operation: HypervisorOperation) {
        let id = self.next_id;
        self.next_id += 1;
        self.calls.insert(id, purpose);
        let request = HypervisorRequest { id, unit: UNIT, operation };
        self.hypervisor.submit(request).expect("room");
    }

    fn local(&self, slot: u64, offset: u64, bytes: usize) -> Sge {
        let address = self.memory.place.base + slot * SLOT_BYTES + offset;
        Sge { address, length: bytes as u32, key: self.memory.place.key }
    }

    fn read(&self, slot: u64, offset: u64, bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        assert!(self.memory.segment.read(slot * SLOT_BYTES + offset, &mut out));
        out
    }

    fn write(&self, slot: u64, offset: u64, bytes: &[u8]) {
        assert!(self.memory.segment.write(slot * SLOT_BYTES + offset, bytes));
    }

    fn fetch(&mut self, request: Request) {
        let Some(slot) = self.free.pop() else {
            // A client that floods before its login; a request that is not fetched ends.
            return self.on(Event::RequestEnded);
        };
        let local = self.local(slot, 0, request.iu_bytes.into());
        let operation = HypervisorOperation::CopyIn { client_address: request.address, local };
        self.call(Purpose::Fetch(slot, request), operation);
    }

    fn end(&mut self, slot: u64) {
        self.free.push(slot);
        self.on(Event::RequestEnded);
    }

    /// Copies an answer to the client's unit, then sends its entry.
    fn answer(&mut self, slot: u64, request: Request, unit: &[u8], tag: u64) {
        self.write(slot, 0, unit);
        let answer =
            Answer { kind: request.kind, status: CrqStatus::Ok, iu_bytes: unit.len() as u16, tag };
        let local = self.local(slot, 0, unit.len());
        let operation = HypervisorOperation::CopyOut { local, client_address: request.address };
        self.call(Purpose::PutUnit(slot, answer), operation);
    }

    fn take(&mut self, slot: u64, request: Request) {
        let iu = self.read(slot, 0, request.iu_bytes.into());
        let mut out = [0; 256];
        let (bytes, tag) = match self.adapter.on_iu(request.kind, &iu, 0) {
            Taken::Nothing(actions) => {
                self.carry_out(actions);
                return self.end(slot);
            }
            Taken::Mad(mad, Step::Answer(_)) => {
                let status = self.adapter.answer_mad(&mad, &mut []);
                return self.answer(slot, request, &mad.answer_header(status), mad.tag);
            }
            Taken::Mad(mad, Step::Exchange { address, bytes }) => {
                let local = self.local(slot, PAYLOAD_OFFSET, bytes.into());
                let operation = HypervisorOperation::CopyIn { client_address: address, local };
                return self.call(Purpose::Payload(slot, request, mad), operation);
            }
            Taken::Login(login, Ok(())) => {
                let response = self.adapter.log_in(&login).expect("connected");
                (encode_response(&response, &mut out), login.tag)
            }
            Taken::Login(login, Err(reject)) => {
                (encode_reject(reject, login.tag, &mut out), login.tag)
            }
            Taken::Command(head) => {
                let (tag, delta) = (head.tag(), self.adapter.answer_delta());
                (encode_success(tag, delta, false, &mut out).map(|bytes| bytes as usize), tag)
            }
            Taken::TaskManagement(function) => {
                let (tag, delta) = (function.tag, self.adapter.answer_delta());
                (encode_success(tag, delta, false, &mut out).map(|bytes| bytes as usize), tag)
            }
        };
        self.answer(slot, request, &out[..bytes.expect("fits")], tag);
    }

    fn returned(&mut self, id: u64, code: i64) {
        let purpose = self.calls.remove(&id).expect("a call");
        match purpose {
            Purpose::Register => self.on(Event::Registered(Registered::from_code(code))),
            Purpose::Free => self.on(Event::Freed(Freed::from_code(code))),
            Purpose::OwnSend => self.sent(Event::Sent, code),
            Purpose::Ready => assert_eq!(code, 0),
            Purpose::Fetch(slot, request) => match Copied::from_code(code, false) {
                Copied::Done => self.take(slot, request),
                fault => {
                    self.on(Event::CopyFailed(fault));
                    self.end(slot);
                }
            },
            Purpose::Payload(slot, request, mad) => {
                let bytes = if code == 0 { usize::from(mad.payload_bytes) } else { 0 };
                let mut payload = self.read(slot, PAYLOAD_OFFSET, bytes);
                let status = self.adapter.answer_mad(&mad, &mut payload);
                if status != MadStatus::Success {
                    return self.answer(slot, request, &mad.answer_header(status), mad.tag);
                }
                self.write(slot, PAYLOAD_OFFSET, &payload);
                let local = self.local(slot, PAYLOAD_OFFSET, bytes);
                let client_address = mad.payload_address.expect("it was fetched from there");
                let operation = HypervisorOperation::CopyOut { local, client_address };
                self.call(Purpose::PutPayload(slot, request, mad), operation);
            }
            Purpose::PutPayload(slot, request, mad) => {
                let status = if code == 0 { MadStatus::Success } else { MadStatus::Failed };
                self.answer(slot, request, &mad.answer_header(status), mad.tag);
            }
            Purpose::PutUnit(slot, answer) => match Copied::from_code(code, true) {
                Copied::Done => {
                    let entry = Entry::answer(answer).to_bytes();
                    self.call(Purpose::Answer(slot), HypervisorOperation::SendEntry(entry));
                }
                fault => {
                    self.on(Event::CopyFailed(fault));
                    self.end(slot);
                }
            },
            Purpose::Answer(slot) => {
                self.sent(Event::AnswerSent, code);
                self.end(slot);
            }
        }
    }

    /// An entry that found the queue full is not sent again: there is no clock here, so that the client counts
    /// as gone at once.
    fn sent(&mut self, event: fn(Sent) -> Event, code: i64) {
        self.on(event(match Sent::from_code(code) {
            Sent::QueueFull => Sent::PartnerAbsent,
            sent => sent,
        }));
    }

    /// Handles events until there are none.
    pub fn run(&mut self) {
        let filler = HypervisorEvent::Returned { id: 0, unit: UNIT, code: 0 };
        let mut events = [filler; 4];
        loop {
            let count = self.hypervisor.poll(&mut events);
            if count == 0 {
                return;
            }
            for event in &events[..count] {
                match *event {
                    HypervisorEvent::Entry { entry, .. } => {
                        self.on(Event::Arrived(Entry::from_bytes(entry).read()));
                    }
                    HypervisorEvent::Returned { id, code, .. } => self.returned(id, code),
                }
            }
        }
    }

    pub fn enable(&mut self) {
        self.on(Event::Enable);
        self.run();
    }

    pub fn state(&self) -> State {
        self.adapter.state()
    }
}
