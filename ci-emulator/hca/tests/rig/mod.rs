//! Two connected ends and a way to drive them: what every test of this crate begins with.
#![allow(dead_code)] // each test binary uses a part

use lunar_hca::{
    ConnectEvent, DeviceConfig, EmulatedDevice, EmulatedHca, EmulatedListener, Fabric, Latency,
    RemoteAccess, RemoteKey,
};
use lunar_pcie::{AddressSpace, Backing, CardMemory, CardRegion};
use lunar_platform::{
    CmEvent, Hca, HcaAttributes, Listener, Memory, Nanoseconds, QpHandle, QpParameters,
    ReceiveRequest, Region, RemoteAddress, SendOperation, SendRequest, Sge, WorkCompletion,
    WorkRequestId,
};

/// Bytes of registered memory each end has.
pub const MEMORY_BYTES: usize = 1 << 20;
/// Rounds of polling after which a test gives up waiting.
pub const ROUNDS_MAX: usize = 20_000;

pub fn attributes() -> HcaAttributes {
    HcaAttributes {
        queue_pairs_max: 256,
        send_queue_depth_max: 256,
        shared_receive_queue_depth: 256,
        completion_queue_depth: 4096,
        rdma_reads_max: 16,
        message_bytes_max: 1 << 20,
    }
}

pub const PARAMETERS: QpParameters = QpParameters { send_queue_depth: 16, rdma_reads: 4 };

/// A name, and how a device is configured.
pub type NamedMode = (&'static str, fn(&str) -> DeviceConfig);

/// Every mode a behaviour must hold in.
pub fn modes() -> Vec<NamedMode> {
    fn prompt(name: &str) -> DeviceConfig {
        DeviceConfig::new(name)
    }
    fn by_polls(name: &str) -> DeviceConfig {
        DeviceConfig::new(name).deferring(Latency { minimum: 1, spread: 7 }, 11)
    }
    fn by_time(name: &str) -> DeviceConfig {
        DeviceConfig::new(name)
            .deferring(Latency { minimum: 500, spread: 20_000 }, 12)
            .virtual_time()
    }
    vec![("prompt", prompt), ("deferring by polls", by_polls), ("deferring by time", by_time)]
}

/// One end: a device with one group and some registered memory.
pub struct Side {
    pub device: EmulatedDevice,
    pub hca: EmulatedHca,
    pub memory: CardMemory,
    pub region: CardRegion,
    pub completions: Vec<WorkCompletion>,
    pub events: Vec<CmEvent>,
    pub answers: Vec<ConnectEvent>,
}

impl Side {
    pub fn new(config: DeviceConfig, attributes: HcaAttributes) -> Self {
        let device = EmulatedDevice::new(config);
        let space = AddressSpace::new();
        let hca = device.group(attributes, space.clone()).unwrap();
        let mut memory = CardMemory::new(space, None, Backing::Shared, 16 << 20);
        let region = memory.claim(MEMORY_BYTES).unwrap();
        let (completions, events, answers) = (Vec::new(), Vec::new(), Vec::new());
        Self { device, hca, memory, region, completions, events, answers }
    }

    pub fn sge(&self, offset: u64, length: u32) -> Sge {
        Sge { address: self.region.base() + offset, length, key: self.region.key() }
    }

    pub fn bytes(&self, offset: usize, length: usize) -> &[u8] {
        self.region.bytes(offset, length)
    }

    pub fn fill(&mut self, offset: usize, bytes: &[u8]) {
        self.region.bytes_mut(offset, bytes.len()).copy_from_slice(bytes);
    }

    pub fn receive(&mut self, id: u64, offset: u64, length: u32) {
        let local = self.sge(offset, length);
        self.hca.post_receive(ReceiveRequest { id: WorkRequestId(id), local }).unwrap();
    }

    pub fn request(
        &self,
        id: u64,
        operation: SendOperation,
        offset: u64,
        length: u32,
        signaled: bool,
    ) -> SendRequest {
        let local = self.sge(offset, length);
        SendRequest { id: WorkRequestId(id), operation, local, signaled }
    }

    /// Posts and rings one signalled SEND.
    pub fn send(&mut self, qp: QpHandle, id: u64, offset: u64, length: u32) {
        let request = self.request(id, SendOperation::Send, offset, length, true);
        self.hca.post_send(qp, &[request]).unwrap();
        self.hca.ring(qp);
    }

    pub fn expose(&mut self, offset: u64, length: u64, access: RemoteAccess) -> RemoteKey {
        self.hca.register_remote(self.region.segment(), offset, length, access).unwrap()
    }

    /// Polls everything once.
    pub fn poll(&mut self) {
        let mut out = [WorkCompletion::EMPTY; 8];
        let count = self.hca.poll(&mut out);
        self.completions.extend(&out[..count]);
        while let Some(event) = self.hca.poll_cm() {
            self.events.push(event);
        }
        while let Some(answer) = self.hca.poll_connect() {
            self.answers.push(answer);
        }
    }

    /// The completion of `id`, if it was reported.
    pub fn ended(&self, id: u64) -> Option<WorkCompletion> {
        self.completions.iter().find(|completion| completion.id.0 == id).copied()
    }
}

pub fn write_to(key: RemoteKey, offset: u64) -> SendOperation {
    SendOperation::RdmaWrite(RemoteAddress { address: key.base + offset, key: key.rkey })
}

pub fn read_from(key: RemoteKey, offset: u64) -> SendOperation {
    SendOperation::RdmaRead(RemoteAddress { address: key.base + offset, key: key.rkey })
}

/// A passive and an active end with one connection between them.
pub struct Rig {
    pub fabric: Fabric,
    pub listener: EmulatedListener,
    pub target: Side,
    pub initiator: Side,
    pub target_qp: QpHandle,
    pub initiator_qp: QpHandle,
    pub now: u64,
}

impl Rig {
    pub fn new(config: fn(&str) -> DeviceConfig) -> Self {
        Self::with(config("card"), config("client"), PARAMETERS)
    }

    pub fn with(card: DeviceConfig, client: DeviceConfig, parameters: QpParameters) -> Self {
        let mut rig = Self::unconnected(card, client);
        (rig.target_qp, rig.initiator_qp) = rig.connect(parameters);
        rig
    }

    pub fn unconnected(card: DeviceConfig, client: DeviceConfig) -> Self {
        let fabric = Fabric::in_process();
        let target = Side::new(card, attributes());
        let initiator = Side::new(client, attributes());
        let listener = target.device.listener(&fabric, "srp").unwrap();
        let none = QpHandle::default();
        Self { fabric, listener, target, initiator, target_qp: none, initiator_qp: none, now: 0 }
    }

    /// Makes one more connection; gives both ends' handles.
    pub fn connect(&mut self, parameters: QpParameters) -> (QpHandle, QpHandle) {
        let id = self.initiator.hca.connect(&self.fabric, "srp", parameters, b"login");
        let request = self.listener.poll().expect("the REQ is there at once in one process");
        assert_eq!(request.private_data.as_bytes(), b"login");
        let target_qp = self.target.hca.accept(request.connection, parameters, b"welcome").unwrap();
        self.until("the connection is established", |rig| {
            rig.target.events.contains(&CmEvent::Established(target_qp))
        });
        let answer = self.initiator.answers.pop().unwrap();
        let ConnectEvent::Accepted { id: answered, qp, private_data } = answer else {
            panic!("{answer:?}")
        };
        assert_eq!((answered, private_data.as_bytes()), (id, &b"welcome"[..]));
        self.target.events.clear();
        (target_qp, qp)
    }

    /// One round: time passes, both ends are polled.
    pub fn round(&mut self) {
        self.now += 1000;
        self.target.device.advance(Nanoseconds(self.now));
        self.initiator.device.advance(Nanoseconds(self.now));
        self.initiator.poll();
        self.target.poll();
    }

    pub fn rounds(&mut self, count: usize) {
        for _ in 0..count {
            self.round();
        }
    }

    /// Rounds until `done`.
    #[track_caller]
    pub fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        for _ in 0..ROUNDS_MAX {
            if done(self) {
                return;
            }
            self.round();
        }
        panic!("never came: {what}");
    }
}
