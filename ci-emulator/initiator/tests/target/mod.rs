//! The smallest SRP target that the initiator can be tried on: one logical unit of 64 KiB in memory,
//! no SCSI beyond READ (10) and WRITE (10), and vendor specific operation codes that misbehave.

use lunar_hca::{DeviceConfig, EmulatedDevice, EmulatedHca, EmulatedListener, Fabric};
use lunar_pcie::{AddressSpace, Backing, CardMemory, CardRegion};
use lunar_platform::{
    CmEvent, CompletionStatus, Hca, HcaAttributes, Listener, Memory, QpHandle, QpParameters,
    ReceiveRequest, Region, RemoteAddress, SendOperation, SendRequest, Sge, WorkCompletion,
    WorkRequestId,
};
use lunar_srp::channel::Credit;
use lunar_srp::descriptor::DataBuffer;
use lunar_srp::iu::{self, Command, Request, Response, response_code};
use lunar_srp::login::{self, LoginPolicy, LoginRequest, LoginResponse, OtherChannels, PortId};

pub const SERVICE: &str = "target";
pub const PORT: PortId = PortId([0x22; 16]);
pub const LIMIT: u32 = 8;
pub const BLOCK_BYTES: usize = 512;
pub const DISK_BYTES: usize = 64 << 10;
/// Never answered: for task management.
pub const HOLD: u8 = 0xc0;
/// Answered with CHECK CONDITION and sense data.
pub const FAIL: u8 = 0xc1;
/// Answered twice: a breach of the protocol.
pub const TWICE: u8 = 0xc2;

const SLOTS: usize = 2 * LIMIT as usize;
const IU_BYTES: usize = 4096;
const SEND_AT: usize = SLOTS * IU_BYTES;
const SEND_BYTES: usize = 512;
const STAGE_AT: usize = SEND_AT + SLOTS * SEND_BYTES;
const MEMORY_BYTES: usize = STAGE_AT + SLOTS * DISK_BYTES;
const SENT: u64 = 1 << 32;
const FETCHED: u64 = 2 << 32;

pub struct Target {
    hca: EmulatedHca,
    listener: EmulatedListener,
    memory: CardRegion,
    pub policy: LoginPolicy,
    pub disk: Vec<u8>,
    /// What the last login asked for.
    pub login: Option<LoginRequest>,
    pub logouts: u32,
    qp: QpHandle,
    credit: Credit,
}

impl Target {
    pub fn new(config: DeviceConfig, fabric: &Fabric) -> Self {
        let device = EmulatedDevice::new(config);
        let space = AddressSpace::new();
        let attributes = HcaAttributes {
            queue_pairs_max: 8,
            send_queue_depth_max: 256,
            shared_receive_queue_depth: SLOTS as u32,
            completion_queue_depth: 1024,
            rdma_reads_max: 4,
            message_bytes_max: 1 << 20,
        };
        let hca = device.group(attributes, space.clone()).unwrap();
        let listener = device.listener(fabric, SERVICE).unwrap();
        let mut memory = CardMemory::new(space, None, Backing::Anonymous, MEMORY_BYTES as u64);
        let memory = memory.claim(MEMORY_BYTES).unwrap();
        let policy = LoginPolicy {
            enabled: true,
            target_port: PORT,
            it_iu_bytes_max: IU_BYTES as u32,
            request_limit: LIMIT,
            channels_max: 2,
        };
        let mut target = Self {
            hca,
            listener,
            memory,
            policy,
            disk: vec![0; DISK_BYTES],
            login: None,
            logouts: 0,
            qp: QpHandle::default(),
            credit: Credit::new(LIMIT),
        };
        (0..SLOTS).for_each(|slot| target.receive(slot));
        target
    }

    fn local(&self, offset: usize, length: usize) -> Sge {
        let address = self.memory.base() + offset as u64;
        Sge { address, length: length as u32, key: self.memory.key() }
    }

    fn receive(&mut self, slot: usize) {
        let local = self.local(slot * IU_BYTES, IU_BYTES);
        self.hca.post_receive(ReceiveRequest { id: WorkRequestId(slot as u64), local }).unwrap();
    }

    pub fn poll(&mut self) {
        while let Some(request) = self.listener.poll() {
            let mut answer = [0; 64];
            let verdict = login::parse(request.private_data.as_bytes())
                .and_then(|login| login::decide(&login, &self.policy).map(|()| login));
            match verdict {
                Ok(login) => {
                    self.login = Some(login);
                    self.credit = Credit::new(LIMIT);
                    let response = LoginResponse {
                        tag: login.tag,
                        request_limit: LIMIT as i32,
                        it_iu_bytes_max: IU_BYTES as u32,
                        ti_iu_bytes_max: iu::RESPONSE_BYTES_MAX as u32,
                        formats: login::FORMATS,
                        others: OtherChannels::None,
                        immediate: false,
                    };
                    let bytes = login::encode_response(&response, &mut answer).unwrap();
                    let parameters = QpParameters { send_queue_depth: 256, rdma_reads: 4 };
                    self.qp =
                        self.hca.accept(request.connection, parameters, &answer[..bytes]).unwrap();
                }
                Err(reason) => {
                    let bytes = login::encode_reject(reason, 0, &mut answer).unwrap();
                    self.hca.reject(request.connection, &answer[..bytes]);
                }
            }
        }
        let mut completions = [WorkCompletion::EMPTY; 8];
        let count = self.hca.poll(&mut completions);
        for completion in &completions[..count] {
            self.on_completion(completion);
        }
        while let Some(event) = self.hca.poll_cm() {
            if let CmEvent::Drained(qp) = event {
                self.hca.destroy(qp);
            }
        }
        self.hca.ring(self.qp);
    }

    fn on_completion(&mut self, completion: &WorkCompletion) {
        let slot = completion.id.0 as u32 as usize;
        let success = completion.status == CompletionStatus::Success;
        match completion.id.0 >> 32 {
            0 if success => self.on_iu(slot, completion.length as usize),
            0 => self.receive(slot),
            1 => {}
            _ if success => self.on_fetched(slot),
            _ => self.receive(slot),
        }
    }

    fn on_iu(&mut self, slot: usize, length: usize) {
        let iu = self.memory.bytes(slot * IU_BYTES, length).to_vec();
        match iu::parse(&iu) {
            Ok(Request::Command(command)) => {
                self.credit.take().unwrap();
                self.on_command(slot, &iu, &command);
            }
            Ok(Request::TaskManagement(request)) => {
                self.credit.take().unwrap();
                // The aborted task's credit is owed; it is the one that is held.
                self.credit.owe();
                let response_code = Some(response_code::NO_FAILURE);
                self.respond(
                    slot,
                    &Response { tag: request.tag, response_code, ..Response::default() },
                );
            }
            Ok(Request::Logout { .. }) => {
                self.logouts += 1;
                self.receive(slot);
                self.hca.disconnect(self.qp);
            }
            Ok(Request::CredResponse { .. } | Request::AerResponse { .. }) => self.receive(slot),
            Err(_) => {
                self.receive(slot);
                self.hca.disconnect(self.qp);
            }
        }
    }

    /// Where a READ (10) or WRITE (10) goes on the disk.
    fn range(cdb: &[u8]) -> std::ops::Range<usize> {
        let lba = u32::from_be_bytes(cdb[2..6].try_into().unwrap()) as usize;
        let blocks = u16::from_be_bytes(cdb[7..9].try_into().unwrap()) as usize;
        lba * BLOCK_BYTES..(lba + blocks) * BLOCK_BYTES
    }

    fn on_command(&mut self, slot: usize, iu: &[u8], command: &Command<'_>) {
        let good = Response { tag: command.tag, ..Response::default() };
        match command.cdb[0] {
            0x28 => {
                let data = self.disk[Self::range(command.cdb)].to_vec();
                self.memory
                    .bytes_mut(STAGE_AT + slot * DISK_BYTES, data.len())
                    .copy_from_slice(&data);
                self.transfer(slot, iu, &command.data_in, SendOperation::RdmaWrite);
                self.respond(slot, &good);
            }
            0x2a => self.transfer(slot, iu, &command.data_out, SendOperation::RdmaRead),
            HOLD => self.receive(slot),
            FAIL => {
                let solicited = command.solicited.wanted(false);
                self.respond(
                    slot,
                    &Response { status: 2, sense: &[0x70, 0, 5, 0], solicited, ..good },
                );
            }
            TWICE => {
                self.respond(slot, &good);
                self.send(slot, &good);
            }
            _ => self.respond(slot, &good),
        }
    }

    fn transfer(
        &mut self,
        slot: usize,
        iu: &[u8],
        buffer: &DataBuffer,
        operation: fn(RemoteAddress) -> SendOperation,
    ) {
        let mut offset = STAGE_AT + slot * DISK_BYTES;
        let pieces: Vec<_> = buffer.descriptors(iu).collect();
        for (n, piece) in pieces.iter().enumerate() {
            let request = SendRequest {
                id: WorkRequestId(FETCHED | slot as u64),
                operation: operation(RemoteAddress { address: piece.address, key: piece.key }),
                local: self.local(offset, piece.length as usize),
                signaled: n + 1 == pieces.len()
                    && matches!(operation(RemoteAddress::default()), SendOperation::RdmaRead(_)),
            };
            self.hca.post_send(self.qp, &[request]).unwrap();
            offset += piece.length as usize;
        }
    }

    fn on_fetched(&mut self, slot: usize) {
        // The IU still lies in its receive buffer, which was not posted again.
        let iu = self.memory.bytes(slot * IU_BYTES, IU_BYTES).to_vec();
        let Ok(Request::Command(command)) = iu::parse(&iu) else { panic!("it parsed before") };
        let range = Self::range(command.cdb);
        let data = self.memory.bytes(STAGE_AT + slot * DISK_BYTES, range.len());
        self.disk[range].copy_from_slice(data);
        self.respond(slot, &Response { tag: command.tag, ..Response::default() });
    }

    /// Posts the receive buffer again and sends `response` with the credits it gives back.
    fn respond(&mut self, slot: usize, response: &Response<'_>) {
        self.receive(slot);
        let request_limit_delta = self.credit.response_delta();
        self.send(slot, &Response { request_limit_delta, ..*response });
    }

    fn send(&mut self, slot: usize, response: &Response<'_>) {
        let offset = SEND_AT + slot * SEND_BYTES;
        let bytes =
            iu::encode_response(response, self.memory.bytes_mut(offset, SEND_BYTES)).unwrap();
        let request = SendRequest {
            id: WorkRequestId(SENT | slot as u64),
            operation: SendOperation::Send,
            local: self.local(offset, bytes),
            signaled: true,
        };
        self.hca.post_send(self.qp, &[request]).unwrap();
    }
}
