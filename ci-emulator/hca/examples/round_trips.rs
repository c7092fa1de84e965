//! Measures the fabric between two processes: how many round trips of a 64-byte SEND one way and a
//! 4 KiB RDMA WRITE with a 36-byte SEND the other way two busy-polling processes make a second.
//!
//! `cargo run --release -p lunar-hca --example round_trips [DEPTH [MEBIBYTES]]`

use std::time::{Duration, Instant};

use lunar_hca::{ConnectEvent, DeviceConfig, EmulatedDevice, EmulatedHca, Fabric, RemoteAccess};
use lunar_pcie::{AddressSpace, Backing, CardMemory, CardRegion};
use lunar_platform::{
    CmEvent, Hca, Listener, Memory, QpHandle, QpParameters, ReceiveRequest, Region, RemoteAddress,
    SendOperation, SendRequest, Sge, WorkCompletion, WorkRequestId,
};

const DIRECTORY: &str = "LUNAR_ROUND_TRIPS_DIRECTORY";
const BLOCK: u64 = 4096;
const PARAMETERS: QpParameters = QpParameters { send_queue_depth: 512, rdma_reads: 4 };

type Failure = Box<dyn std::error::Error>;

struct End {
    device: EmulatedDevice,
    hca: EmulatedHca,
    region: CardRegion,
    /// Bytes of the region before the message buffers.
    data_bytes: u64,
}

impl End {
    fn new(name: &str, data_bytes: u64, depth: u64) -> Result<Self, Failure> {
        let config = DeviceConfig::new(name);
        let attributes = config.attributes;
        let device = EmulatedDevice::new(config);
        let space = AddressSpace::new();
        let hca = device.group(attributes, space.clone())?;
        let bytes = data_bytes + depth * 256;
        let region = CardMemory::new(space, None, Backing::Shared, bytes).claim(bytes as usize)?;
        Ok(Self { device, hca, region, data_bytes })
    }

    /// Message buffer `index`: sent from its first half, received into its second.
    fn message(&self, index: u64, received: bool) -> u64 {
        self.data_bytes + index * 256 + if received { 128 } else { 0 }
    }

    fn sge(&self, offset: u64, length: u32) -> Sge {
        Sge { address: self.region.base() + offset, length, key: self.region.key() }
    }

    fn receive(&mut self, index: u64) -> Result<(), Failure> {
        let local = self.sge(self.message(index, true), 128);
        let request = ReceiveRequest { id: WorkRequestId(index), local };
        self.hca.post_receive(request).map_err(|error| format!("{error:?}").into())
    }

    fn post(&mut self, qp: QpHandle, chain: &[SendRequest]) -> Result<(), Failure> {
        self.hca.post_send(qp, chain).map_err(|error| format!("{error:?}").into())
    }

    fn send(&self, id: u64, offset: u64, length: u32) -> SendRequest {
        SendRequest {
            id: WorkRequestId(id | 1 << 32),
            operation: SendOperation::Send,
            local: self.sge(offset, length),
            signaled: true,
        }
    }
}

/// Answers every command with a block and a response, until the peer disconnects.
fn serve(mut end: End, qp: QpHandle, depth: u64) -> Result<(), Failure> {
    for index in 0..depth {
        end.receive(index)?;
    }
    let mut out = [WorkCompletion::EMPTY; 32];
    let mut block = 0;
    loop {
        let count = end.hca.poll(&mut out);
        let mut answered = false;
        for completion in out.iter().take(count).filter(|completion| completion.id.0 < depth) {
            let index = completion.id.0;
            let at = end.message(index, true) as usize;
            let command: [u8; 16] = end.region.bytes(at, 16).try_into()?;
            end.receive(index)?;
            let value = u128::from_le_bytes(command);
            let remote = RemoteAddress { address: value as u64, key: (value >> 64) as u32 };
            let write = SendRequest {
                id: WorkRequestId(1 << 32),
                operation: SendOperation::RdmaWrite(remote),
                local: end.sge(block, BLOCK as u32),
                signaled: false,
            };
            block = (block + BLOCK) % end.data_bytes;
            let response = end.send(index, end.message(index, false), 36);
            end.post(qp, &[write, response])?;
            answered = true;
        }
        if answered {
            end.hca.ring(qp);
        } else if matches!(end.hca.poll_cm(), Some(CmEvent::Disconnected(_))) {
            return Ok(());
        }
    }
}

fn card(directory: &str, depth: u64, data_bytes: u64) -> Result<(), Failure> {
    let mut end = End::new("card", data_bytes, depth)?;
    let fabric = Fabric::unix(std::path::Path::new(directory));
    let mut listener = end.device.listener(&fabric, "srp")?;
    loop {
        if let Some(request) = listener.poll() {
            let accepted = end.hca.accept(request.connection, PARAMETERS, &[]);
            let qp = accepted.map_err(|error| format!("{error:?}"))?;
            return serve(end, qp, depth);
        }
    }
}

/// Keeps `depth` commands under way for `time`; gives how many came back.
fn drive(
    end: &mut End,
    qp: QpHandle,
    depth: u64,
    key: lunar_hca::RemoteKey,
    time: Duration,
) -> Result<u64, Failure> {
    let mut out = [WorkCompletion::EMPTY; 32];
    let (mut issued, mut block) = (0u64, 0);
    let mut command = |end: &mut End| -> Result<(), Failure> {
        let value = u128::from(key.base + block) | u128::from(key.rkey) << 64;
        block = (block + BLOCK * 7) % end.data_bytes;
        let at = end.message(issued % depth, false);
        end.region.bytes_mut(at as usize, 16).copy_from_slice(&value.to_le_bytes());
        let request = end.send(issued % depth, at, 64);
        issued += 1;
        end.post(qp, &[request])
    };
    for index in 0..depth {
        end.receive(index)?;
        command(end)?;
    }
    end.hca.ring(qp);
    let start = Instant::now();
    let mut answered = 0u64;
    while start.elapsed() < time {
        let count = end.hca.poll(&mut out);
        let mut responses = 0;
        for completion in out.iter().take(count).filter(|completion| completion.id.0 < depth) {
            end.receive(completion.id.0)?;
            command(end)?;
            responses += 1;
        }
        if responses > 0 {
            end.hca.ring(qp);
            answered += responses;
        } else if let Some(CmEvent::Disconnected(_)) = end.hca.poll_cm() {
            return Err("the card went away".into());
        }
    }
    Ok(answered)
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let depth: u64 = arguments.next().map_or(Ok(32), |text| text.parse())?;
    let mebibytes: u64 = arguments.next().map_or(Ok(64), |text| text.parse())?;
    let data_bytes = mebibytes << 20;
    if let Ok(directory) = std::env::var(DIRECTORY) {
        return card(&directory, depth, data_bytes);
    }
    let directory = tempfile::tempdir()?;
    let mut child = std::process::Command::new(std::env::current_exe()?)
        .args([depth.to_string(), mebibytes.to_string()])
        .env(DIRECTORY, directory.path())
        .spawn()?;
    let socket = directory.path().join("srp.sock");
    while !socket.exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut end = End::new("client", data_bytes, depth)?;
    let segment = end.region.segment().clone();
    let key = end.hca.register_remote(&segment, 0, data_bytes, RemoteAccess::WRITE)?;
    let fabric = Fabric::unix(directory.path());
    end.hca.connect(&fabric, "srp", PARAMETERS, &[]);
    let qp = loop {
        match end.hca.poll_connect() {
            Some(ConnectEvent::Accepted { qp, .. }) => break qp,
            Some(other) => return Err(format!("{other:?}").into()),
            None => {}
        }
    };
    let time = Duration::from_secs(3);
    let answered = drive(&mut end, qp, depth, key, time)?;
    let per_second = answered as f64 / time.as_secs_f64();
    println!("depth {depth}, {mebibytes} MiB: {per_second:.0} round trips/s");
    let statistics = end.hca.statistics();
    println!(
        "client: {:.1} commands a doorbell, {} polls",
        statistics.sends as f64 / statistics.doorbells as f64,
        statistics.polls
    );
    end.hca.disconnect(qp);
    child.wait()?;
    Ok(())
}
