//! What the harness is in the guest, under the name `srp-initiator`: an SRP initiator that does what Linux's cannot be
//! made to do. It speaks to the target under test over RDMA, with the RDMA/CM's form of the login.
//!
//! It is made of the same `srp` crate as the target: what both ends might get wrong together, Linux's initiator tells.

use std::io::Write as _;
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lunar_scsi::task_set::{TaskAttribute, TaskManagementFunction};
use lunar_srp::descriptor::Descriptor;
use lunar_srp::iu::{self, BufferLayout, CommandLayout, Reply, SolicitedNotification};
use lunar_srp::login::{self, Action, FORMATS, LoginForm, LoginRequest, PortId};

use crate::rdma::{Answer, DATA_AT, Initiator, RECEIVE_BYTES, RECEIVES, SENT};

/// The name that the harness acts by.
pub const NAME: &str = "srp-initiator";

/// The initiator port that it claims to be.
const PORT: PortId = PortId(*b"lunar-initiator!");
/// Bytes of an IU that it asks for.
const IU_BYTES: u32 = 2048;
/// IUs are built at the start of the buffer behind the receives, each in a place of its own; data lies behind them.
const IU_PLACES: usize = 320;
const IUS_BYTES: usize = IU_PLACES * IU_BYTES as usize;
const MIB: usize = 1 << 20;
/// Ranges of a list: more than the target posts at once, so that a transfer takes several turns.
const PIECES: usize = 64;
/// Bytes that the data of all commands may take.
const DATA_BYTES: usize = 16 * MIB;
/// What memory holds that the target is to write.
const UNTOUCHED: u8 = 0xa5;
/// How long what must not come is waited for.
const SILENCE: Duration = Duration::from_millis(60);
/// How long what must come is waited for, on a machine that may be slow.
const PATIENCE: Duration = Duration::from_secs(30);

const GOOD: u8 = 0;
const BLOCK_BYTES: usize = 512;

/// `ADDRESS:PORT GUID TEST`: runs one test against the target whose port is GUID (16 hexadecimal digits) twice.
pub fn run(arguments: &[String]) -> Result<()> {
    let [service, guid, test] = arguments else {
        bail!("usage: {NAME} ADDRESS:PORT GUID garbage|elsewhere|large|overrun|load|abort|vanish");
    };
    let guid = u64::from_str_radix(guid, 16).context("GUID")?.to_be_bytes();
    let mut port = [0; 16];
    port[..8].copy_from_slice(&guid);
    port[8..].copy_from_slice(&guid);
    let target = Target { service: service.parse()?, port: PortId(port) };
    match test.as_str() {
        "garbage" => rejected(target.connect(&[0x5a; 56], RECEIVES)?),
        "elsewhere" => {
            let elsewhere = PortId([0xee; 16]);
            rejected(target.login(LoginRequest { target_port: elsewhere, ..target.request() })?)
        }
        "large" => rejected(target.login(LoginRequest { it_iu_bytes: 9000, ..target.request() })?),
        "overrun" => overrun(&target),
        "load" => load(&mut Channel::open(&target)?),
        "abort" => abort(&mut Channel::open(&target)?),
        "vanish" => vanish(&mut Channel::open(&target)?),
        _ => bail!("there is no test `{test}`"),
    }
}

/// The target under test.
struct Target {
    service: SocketAddrV4,
    port: PortId,
}

impl Target {
    fn request(&self) -> LoginRequest {
        LoginRequest {
            form: LoginForm::RdmaCm,
            tag: 1,
            it_iu_bytes: IU_BYTES,
            formats: FORMATS,
            action: Action::Single,
            immediate_offset: None,
            initiator_port: PORT,
            target_port: self.port,
        }
    }

    fn connect(&self, private_data: &[u8], receives: usize) -> Result<Answer> {
        let (address, port) = (*self.service.ip(), self.service.port());
        Initiator::connect_with(address, port, private_data, IUS_BYTES + DATA_BYTES, receives)
    }

    fn login(&self, request: LoginRequest) -> Result<Answer> {
        let mut private_data = [0; 64];
        let length = login::encode_request(&request, &mut private_data).context("login")?;
        self.connect(&private_data[..length], RECEIVES)
    }
}

/// Prints the code of a login's rejection.
fn rejected(answer: Answer) -> Result<()> {
    let Answer::Rejected(private_data) = answer else { bail!("the login was taken") };
    let rejection = login::parse_reject(&private_data).context("no SRP_LOGIN_REJ came with it")?;
    println!("{:#x}", rejection.reason);
    Ok(())
}

/// More commands than credits: nothing is received, so that no credit comes back.
fn overrun(target: &Target) -> Result<()> {
    let mut private_data = [0; 64];
    let length = login::encode_request(&target.request(), &mut private_data).context("login")?;
    let Answer::Accepted(rdma, response) = target.connect(&private_data[..length], 0)? else {
        bail!("the login was rejected");
    };
    let mut channel = Channel::over(rdma, &response)?;
    let limit = channel.credits;
    let start = Instant::now();
    // The target counts a response as sent once its device has it, so it notices later than with the first too many.
    for count in 0.. {
        ensure!(
            start.elapsed() < PATIENCE,
            "{count} commands with {limit} credits, and still open"
        );
        channel.command(&[0; 6], BufferLayout::None, BufferLayout::None)?;
        match channel.rdma.completion() {
            Ok(_) => {}
            Err(_) if count > limit => {
                println!("closed after {} commands with {limit} credits", count + 1);
                return Ok(());
            }
            Err(error) => return Err(error.context(format!("closed after {count} commands"))),
        }
    }
    Ok(())
}

/// All credits in use, with as many pieces of data; what is written can be read.
fn load(channel: &mut Channel) -> Result<()> {
    let depth = usize::try_from(channel.credits)?;
    println!("{depth} credits");
    // Behind what Linux's initiator uses, at 64 MiB.
    const FIRST: usize = 64 * MIB / BLOCK_BYTES;
    let bytes = 64 << 10;
    let places = DATA_BYTES / 2 / bytes;
    for round in 0..2_usize {
        let byte = |place: usize, at: usize| (place * 7 + at / BLOCK_BYTES + round * 31) as u8;
        for place in 0..places {
            let data = channel.data(place * bytes, bytes);
            data.iter_mut().enumerate().for_each(|(at, to)| *to = byte(place, at));
        }
        for write in [true, false] {
            if !write {
                channel.data(0, places * bytes).fill(UNTOUCHED);
            }
            let (mut sent, mut answered) = (0, 0);
            while answered < places {
                while sent < places && sent - answered < depth {
                    channel.transfer(
                        write,
                        FIRST + sent * bytes / BLOCK_BYTES,
                        sent * bytes,
                        bytes,
                    )?;
                    sent += 1;
                }
                let response = channel.response()?;
                ensure!(response.status == GOOD, "{response:?}");
                answered += 1;
            }
        }
        for place in 0..places {
            let data = channel.data(place * bytes, bytes);
            let wrong = data.iter().enumerate().position(|(at, found)| *found != byte(place, at));
            ensure!(
                wrong.is_none(),
                "round {round}: byte {wrong:?} of {place} is not what was written"
            );
        }
    }
    Ok(())
}

/// Aborts reads and writes of 1 MiB in the middle of their data: the response to the abort comes once nothing moves any
/// more, and none to the command after it.
fn abort(channel: &mut Channel) -> Result<()> {
    let mut aborted = [0; 2];
    for round in 0..12 {
        let write = round % 2 == 1;
        channel.data(0, MIB).fill(UNTOUCHED);
        let exposed = channel.rdma.expose(DATA_AT)?;
        let command = channel.transfer_in_pieces(write, 0, 0, MIB, exposed.key())?;
        if !write {
            // In the middle: of the rest, nothing is posted yet.
            channel.wait_for_data(0)?;
        }
        let abort = channel.abort_task(command)?;
        let mut answered = false;
        loop {
            let response = channel.response()?;
            if response.tag == abort {
                ensure!(response.code == Some(0), "round {round}: {response:?}");
                break;
            }
            ensure!(response.tag == command, "{response:?}");
            answered = true;
        }
        // A transfer that is still under way meets a key that is over, and its channel ends.
        drop(exposed);
        let then = channel.data(0, MIB).to_vec();
        ensure!(channel.response_within(SILENCE)?.is_none(), "an answer after the abort's");
        ensure!(
            then == channel.data(0, MIB),
            "round {round}: data came after the abort's response"
        );
        channel.until_good()?;
        aborted[usize::from(write)] += u32::from(!answered);
    }
    let [reads, writes] = aborted;
    println!("aborted before their end: {reads} of 6 reads, {writes} of 6 writes");
    ensure!(reads > 0 && writes > 0, "none was aborted in the middle: this proves nothing");
    Ok(())
}

/// Ends without a word in the middle of the data of several reads of 1 MiB.
fn vanish(channel: &mut Channel) -> Result<()> {
    channel.data(0, DATA_BYTES).fill(UNTOUCHED);
    for place in 0..DATA_BYTES / MIB {
        channel.transfer(false, place * MIB / BLOCK_BYTES, place * MIB, MIB)?;
    }
    channel.wait_for_data(0)?;
    println!("in the middle");
    std::io::stdout().flush()?;
    std::process::abort();
}

/// What is looked at of an SRP_RSP.
#[derive(Debug)]
struct Response {
    tag: u64,
    status: u8,
    /// Of a task management function.
    code: Option<u8>,
}

/// A channel that is logged in.
struct Channel {
    rdma: Initiator,
    /// Requests that may be sent now.
    credits: i32,
    tag: u64,
    place: usize,
}

impl Channel {
    /// Logs in, and takes the unit attentions.
    fn open(target: &Target) -> Result<Self> {
        match target.login(target.request())? {
            Answer::Accepted(rdma, response) => {
                let mut channel = Self::over(rdma, &response)?;
                channel.until_good()?;
                Ok(channel)
            }
            Answer::Rejected(private_data) => {
                bail!("rejected: {:?}", login::parse_reject(&private_data))
            }
        }
    }

    fn over(rdma: Initiator, response: &[u8]) -> Result<Self> {
        let response = login::parse_response(response).context("no SRP_LOGIN_RSP")?;
        Ok(Self { rdma, credits: response.request_limit, tag: 0, place: 0 })
    }

    /// Memory for data.
    fn data(&mut self, offset: usize, bytes: usize) -> &mut [u8] {
        &mut self.rdma.bytes()[DATA_AT + IUS_BYTES + offset..][..bytes]
    }

    fn descriptor(&self, offset: usize, bytes: usize, key: u32) -> Result<Descriptor> {
        let address = self.rdma.remote(DATA_AT + IUS_BYTES + offset).address;
        Ok(Descriptor { address, key, length: u32::try_from(bytes)? })
    }

    /// Sends an IU that `encode` makes for a new tag, and gives the tag.
    fn send(&mut self, encode: impl FnOnce(u64, &mut [u8]) -> Option<usize>) -> Result<u64> {
        self.tag += 1;
        self.place = (self.place + 1) % IU_PLACES;
        let at = DATA_AT + self.place * IU_BYTES as usize;
        let place = &mut self.rdma.bytes()[at..][..IU_BYTES as usize];
        let length = encode(self.tag, place).context("an IU that does not fit")?;
        self.rdma.post_send(at, length)?;
        self.credits -= 1;
        Ok(self.tag)
    }

    fn command(
        &mut self,
        cdb: &[u8],
        data_out: BufferLayout<'_>,
        data_in: BufferLayout<'_>,
    ) -> Result<u64> {
        self.send(|tag, out| {
            let (attribute, solicited) = (TaskAttribute::Simple, SolicitedNotification::default());
            let lun = [0; 8];
            let layout = CommandLayout { tag, lun, attribute, solicited, cdb, data_out, data_in };
            iu::encode_command(&layout, out)
        })
    }

    /// READ(10) or WRITE(10) of `bytes` from or to the data at `offset`, under the buffer's key.
    fn transfer(&mut self, write: bool, lba: usize, offset: usize, bytes: usize) -> Result<u64> {
        let data = self.descriptor(offset, bytes, self.rdma.remote(0).key)?;
        self.read_or_write(write, lba, bytes, BufferLayout::Direct(data))
    }

    /// The same with the data in [`PIECES`] ranges, under `key`.
    fn transfer_in_pieces(
        &mut self,
        write: bool,
        lba: usize,
        offset: usize,
        bytes: usize,
        key: u32,
    ) -> Result<u64> {
        let piece = bytes / PIECES;
        let pieces = (0..PIECES)
            .map(|place| self.descriptor(offset + place * piece, piece, key))
            .collect::<Result<Vec<_>>>()?;
        // The list lies in the IU, and is not to be looked for elsewhere.
        let list = BufferLayout::Indirect { table_address: 0, table_key: 0, pieces: &pieces };
        self.read_or_write(write, lba, bytes, list)
    }

    fn read_or_write(
        &mut self,
        write: bool,
        lba: usize,
        bytes: usize,
        data: BufferLayout<'_>,
    ) -> Result<u64> {
        let mut cdb = [0; 10];
        cdb[0] = if write { 0x2a } else { 0x28 };
        cdb[2..6].copy_from_slice(&u32::try_from(lba)?.to_be_bytes());
        cdb[7..9].copy_from_slice(&u16::try_from(bytes / BLOCK_BYTES)?.to_be_bytes());
        match write {
            true => self.command(&cdb, data, BufferLayout::None),
            false => self.command(&cdb, BufferLayout::None, data),
        }
    }

    fn abort_task(&mut self, task: u64) -> Result<u64> {
        let function = iu::function_code(TaskManagementFunction::AbortTask);
        let solicited = SolicitedNotification::default();
        self.send(|tag, out| {
            iu::encode_task_management(tag, [0; 8], function, task, solicited, out)
        })
    }

    /// The next response, and the credits that come with it.
    fn response(&mut self) -> Result<Response> {
        self.response_within(PATIENCE)?.context("no response within 30 s")
    }

    fn response_within(&mut self, patience: Duration) -> Result<Option<Response>> {
        let until = Instant::now() + patience;
        while let left = until.saturating_duration_since(Instant::now())
            && let Some(completion) = self.rdma.completion_within(left)?
        {
            if completion.wr_id == SENT {
                continue;
            }
            let receive = usize::try_from(completion.wr_id)?;
            let length = usize::try_from(completion.byte_len)?;
            let iu = &self.rdma.bytes()[receive * RECEIVE_BYTES..][..length];
            let (response, delta) = match iu::parse_reply(iu) {
                Ok(Reply::Response(response)) => {
                    let (tag, status, code) =
                        (response.tag, response.status, response.response_code);
                    (Some(Response { tag, status, code }), response.request_limit_delta)
                }
                Ok(Reply::CredRequest { request_limit_delta, .. }) => (None, request_limit_delta),
                other => bail!("the target sent {other:?}"),
            };
            self.rdma.post_receive(receive)?;
            self.credits += delta;
            if response.is_some() {
                return Ok(response);
            }
        }
        Ok(None)
    }

    /// TEST UNIT READY until there is no unit attention any more.
    fn until_good(&mut self) -> Result<()> {
        for _ in 0..8 {
            let tag = self.command(&[0; 6], BufferLayout::None, BufferLayout::None)?;
            let response = self.response()?;
            ensure!(response.tag == tag, "{response:?}");
            if response.status == GOOD {
                return Ok(());
            }
        }
        bail!("TEST UNIT READY is not GOOD")
    }

    /// Waits until the target has begun to write at `offset` of the data.
    fn wait_for_data(&mut self, offset: usize) -> Result<()> {
        let start = Instant::now();
        while std::hint::black_box(self.data(offset, 1))[0] == UNTOUCHED {
            ensure!(start.elapsed() < PATIENCE, "no data within 30 s");
            std::hint::spin_loop();
        }
        Ok(())
    }
}
