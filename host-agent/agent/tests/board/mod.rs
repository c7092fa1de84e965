//! The agent as a process of its own, with a keeper in this one, and a scripted card: what a card does, step by step,
//! without any of the card's code. Tests of the agent share it; what they check is theirs.
#![allow(dead_code)] // each test binary uses its part

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use lunar_agent::api::{self, wire};
use lunar_control_channel::make::{Validity, make};
use lunar_control_channel::rustls::{ClientConnection, StreamOwned};
use lunar_control_channel::{Identity, Role};
use lunar_core::ring::ArenaWindow;
use lunar_handlers::Arena;
use lunar_offload_proto::control::{
    self, Decoder, Encoder, ToCard, ToHost, feature, to_card, to_host,
};
use lunar_offload_proto::cursor::{Consumer, Producer};
use lunar_offload_proto::ring::{
    BlockRequest, CompletionEntry, Operation, SideRecord, SubmissionEntry,
};

/// How long anything may take; a test that needs it all has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub const DISK_BYTES: usize = 64 * 4096;

/// What the card is connected over. What is promised of the control channel holds over either.
#[derive(Clone, Copy, Debug)]
pub enum Over {
    Unix,
    Tls,
}

pub const BOTH: [Over; 2] = [Over::Unix, Over::Tls];

pub struct Board {
    directory: tempfile::TempDir,
    over: Over,
    /// An address of this machine that no other test has, for `Over::Tls`.
    address: SocketAddr,
    pub agent: Child,
}

/// Loopback has 2^24 addresses; a port alone might be another test's by the time the agent binds it.
pub fn own_address() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [high, low, ..] = std::process::id().to_be_bytes().map(|byte| byte.max(1))[2..] else {
        panic!("a process id has four bytes")
    };
    let last = NEXT.fetch_add(1, Ordering::Relaxed);
    (Ipv4Addr::new(127, high, low, last), 5558).into()
}

impl Board {
    /// A keeper, a disk file, a configuration, and an agent.
    pub fn start(configuration: &str) -> Self {
        Self::start_over(Over::Unix, configuration)
    }

    pub fn start_over(over: Over, configuration: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let keeper = lunar_keeper::Options {
            socket: directory.path().join("keeper"),
            arena_bytes: 1 << 20,
            groups: 1,
            ring_slots: 16,
            rdma: None,
            rdma_listen: None,
            exporter: false,
            exit_with_parent: false,
        };
        // Lives as long as the test program.
        std::thread::spawn(move || lunar_keeper::run(&keeper));
        let disk = directory.path().join("disk.img");
        std::fs::write(&disk, vec![0x5a; DISK_BYTES]).unwrap();
        let configuration = configuration.replace("DISK", disk.to_str().unwrap());
        std::fs::write(directory.path().join("scst.conf"), configuration).unwrap();
        make(&directory.path().join("keys"), Validity::days(2), false).unwrap();
        let address = own_address();
        let agent = Self::spawn(directory.path(), over, address);
        Self { directory, over, address, agent }
    }

    pub fn spawn(directory: &Path, over: Over, address: SocketAddr) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lunar-agent"));
        let files =
            [("config", "scst.conf"), ("keeper", "keeper"), ("api", "api"), ("pr-dir", "pr")];
        for (option, file) in files {
            command.arg(format!("--{option}")).arg(directory.join(file));
        }
        match over {
            Over::Unix => command.arg("--control").arg(directory.join("control")),
            Over::Tls => {
                command.args(["--control", &address.to_string()]);
                command.arg("--tls").arg(directory.join("keys/agent"))
            }
        };
        let log = File::options().create(true).append(true).open(directory.join("log")).unwrap();
        command.env("NO_COLOR", "1").stdin(Stdio::null()).stderr(log).spawn().unwrap()
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    /// Ends the agent without a chance to tidy up, and starts the next.
    pub fn replace_agent(&mut self) {
        self.kill_agent();
        self.start_agent();
    }

    /// Ends the agent without a chance to tidy up.
    pub fn kill_agent(&mut self) {
        self.agent.kill().unwrap();
        self.agent.wait().unwrap();
    }

    /// Starts the next one; there must be none.
    pub fn start_agent(&mut self) {
        self.agent = Self::spawn(self.directory.path(), self.over, self.address);
    }

    /// What the agents wrote to their logs, one after the other.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }

    pub fn ask<T>(
        &self,
        call: impl AsyncFnOnce(&mut Api) -> Result<tonic::Response<T>, tonic::Status>,
    ) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut api = api::connect(&self.path("api")).await.unwrap();
            call(&mut api).await.unwrap().into_inner()
        })
    }

    pub fn show(&self) -> wire::ShowReply {
        self.ask(async |api| api.show(wire::ShowRequest {}).await)
    }

    pub fn health(&self) -> wire::HealthReply {
        self.ask(async |api| api.health(wire::HealthRequest {}).await)
    }
}

pub type Api = wire::agent_client::AgentClient<tonic::transport::Channel>;

impl Drop for Board {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

pub trait Stream: Read + Write + Send {
    /// Whether a read gives up when there is nothing yet.
    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()>;
}

impl Stream for UnixStream {
    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.set_nonblocking(nonblocking)
    }
}

impl Stream for StreamOwned<ClientConnection, TcpStream> {
    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.sock.set_nonblocking(nonblocking)
    }
}

/// What [`Card::poll`] found.
pub enum Polled {
    Message(to_card::Message),
    Nothing,
    /// The agent closed the channel, or is gone.
    Closed,
}

/// The control channel's far end.
pub struct Card {
    pub stream: Box<dyn Stream>,
    decoder: Decoder<ToCard>,
    encoder: Encoder,
}

/// Tries until the agent is there.
pub fn connected<S>(connect: impl Fn() -> std::io::Result<S>) -> S {
    let start = Instant::now();
    loop {
        match connect() {
            Ok(stream) => return stream,
            Err(error) => assert!(start.elapsed() < PATIENCE, "no agent: {error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn connected_over_tcp(board: &Board) -> TcpStream {
    let stream = connected(|| TcpStream::connect(board.address));
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A card's end of TLS, with the keys in `directory`. Nothing was sent yet.
pub fn over_tls(board: &Board, directory: &Path) -> StreamOwned<ClientConnection, TcpStream> {
    let (session, _) = Identity::load(directory, Role::Card).unwrap().card().unwrap();
    StreamOwned::new(session, connected_over_tcp(board))
}

impl Card {
    pub fn connect(board: &Board) -> Self {
        let stream: Box<dyn Stream> = match board.over {
            Over::Unix => {
                let stream = connected(|| UnixStream::connect(board.path("control")));
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                Box::new(stream)
            }
            Over::Tls => Box::new(over_tls(board, &board.path("keys/card"))),
        };
        Self::over(stream)
    }

    /// One attempt, over the Unix socket.
    pub fn try_connect(board: &Board) -> io::Result<Self> {
        let stream = UnixStream::connect(board.path("control"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self::over(Box::new(stream)))
    }

    fn over(stream: Box<dyn Stream>) -> Self {
        Self { stream, decoder: Decoder::new(), encoder: Encoder::new() }
    }

    pub fn send(&mut self, message: to_host::Message) {
        self.try_send(message).unwrap();
    }

    /// An agent that is gone takes nothing.
    pub fn try_send(&mut self, message: to_host::Message) -> io::Result<()> {
        let message = ToHost { message: Some(message) };
        let bytes = self.encoder.to_bytes(&message).unwrap();
        self.stream.write_all(&bytes)
    }

    /// The next message that is no heartbeat; `None` when the agent closed the channel.
    pub fn next(&mut self) -> Option<to_card::Message> {
        match self.receive() {
            Polled::Message(message) => Some(message),
            Polled::Closed => None,
            Polled::Nothing => panic!("the agent said nothing for {PATIENCE:?}"),
        }
    }

    /// As [`Self::next`], without waiting.
    pub fn poll(&mut self) -> Polled {
        self.stream.set_nonblocking(true).unwrap();
        let polled = self.receive();
        self.stream.set_nonblocking(false).unwrap();
        polled
    }

    fn receive(&mut self) -> Polled {
        let mut bytes = [0; 4096];
        loop {
            match self.decoder.next_message().unwrap() {
                Some(ToCard { message: Some(to_card::Message::Heartbeat(_)) }) => {}
                Some(ToCard { message: Some(message) }) => return Polled::Message(message),
                Some(ToCard { message: None }) => panic!("a message that is not known here"),
                None => match self.stream.read(&mut bytes) {
                    Ok(0) => return Polled::Closed,
                    Ok(length) => self.decoder.push(&bytes[..length]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Polled::Nothing,
                    // It closed before it had read everything; what it had sent came first. A killed one says
                    // nothing at all, which TLS minds.
                    Err(error)
                        if [ErrorKind::ConnectionReset, ErrorKind::UnexpectedEof]
                            .contains(&error.kind()) =>
                    {
                        return Polled::Closed;
                    }
                    Err(error) => panic!("{error}"),
                },
            }
        }
    }

    /// Hello to ConfigurationApplied. `reconcile` for a card that the agent's rings belong to.
    pub fn meet(
        &mut self,
        epoch: u64,
        reconcile: bool,
    ) -> (control::RingSetup, control::Configuration) {
        let Some(to_card::Message::Hello(hello)) = self.next() else { panic!("no Hello") };
        let limits = control::Limits::default();
        let mine = control::hello("scripted card", epoch, [7; 16], feature::ALL, 0, limits);
        let agreed = control::negotiate(&mine, &hello).unwrap();
        self.send(to_host::Message::HelloAccepted(control::HelloAccepted {
            version: agreed.version,
            features: agreed.features,
            hello: Some(mine),
        }));
        let Some(to_card::Message::RingSetup(setup)) = self.next() else { panic!("no RingSetup") };
        self.send(to_host::Message::RingsReady(control::RingsReady::default()));
        if reconcile {
            self.send(to_host::Message::Reconcile(control::Reconcile {
                ring: 0,
                agent_epoch: hello.epoch,
                operations: Vec::new(),
            }));
            let reconciled = self.next();
            assert!(matches!(reconciled, Some(to_card::Message::Reconciled(_))), "{reconciled:?}");
        }
        let Some(to_card::Message::Configuration(configuration)) = self.next() else {
            panic!("no Configuration")
        };
        let generation = configuration.generation;
        self.send(to_host::Message::ConfigurationApplied(control::ConfigurationApplied {
            generation,
        }));
        self.send(to_host::Message::NexusEvent(control::NexusEvent {
            kind: control::NexusEventKind::Login.into(),
            nexus: 3,
            nexus_generation: 1,
            target: 1,
            initiator_port_id: vec![9; 16],
            peer: "fe80::1".to_owned(),
            channels: 1,
            ..control::NexusEvent::default()
        }));
        (setup, configuration)
    }
}

/// The card's ends of ring 0, in the keeper's memory.
pub struct Rings {
    pub submissions: Producer<SubmissionEntry, ArenaWindow>,
    pub completions: Consumer<CompletionEntry, ArenaWindow>,
    pub arena: Arena,
    pub offer: lunar_keeper::Offer,
    token: u64,
}

impl Rings {
    pub fn open(board: &Board, setup: &control::RingSetup) -> Self {
        let path = board.path("keeper");
        let offer =
            lunar_keeper::Client::connect_within(&path, PATIENCE).unwrap().attach().unwrap();
        let ring = setup.rings[0];
        let layout = offer.layout.ring();
        assert_eq!(ring.slots, layout.slots());
        let blob =
            |arena: u32| setup.arenas.iter().find(|own| own.id == arena).unwrap().blob.clone();
        for arena in [ring.arena, ring.data_arena] {
            let expected = offer.export_blob(u16::try_from(arena).unwrap()).unwrap();
            assert_eq!(blob(arena), expected, "the blob the card imports the arena with");
        }
        let rings_bytes = usize::try_from(offer.layout.rings_bytes()).unwrap();
        let rings = Arena::from_fd(offer.rings.as_fd(), rings_bytes).unwrap();
        let window = |offset| ArenaWindow::new(rings.clone(), offset, layout).unwrap();
        let arena_bytes = usize::try_from(offer.layout.arena_bytes()).unwrap();
        Self {
            submissions: Producer::resume(
                layout,
                window(ring.submission_offset),
                ring.submission_sequence,
            ),
            completions: Consumer::resume(
                layout,
                window(ring.completion_offset),
                ring.completion_sequence,
            ),
            arena: Arena::from_fd(offer.arena.as_fd(), arena_bytes).unwrap(),
            offer,
            token: 0,
        }
    }

    /// One operation from submission to completion. `hint`: whether the agent is told to look.
    pub fn run(
        &mut self,
        operation: Operation,
        unit: u32,
        generation: u32,
        block: u64,
        hint: bool,
    ) -> CompletionEntry {
        let mut entry = SubmissionEntry::new(operation, 0);
        if operation != Operation::Flush {
            entry.lba = (block * 8).into();
            entry.blocks = 8.into();
            entry.data_bytes = 4096.into();
        }
        self.carry_out(entry, None, (unit, generation), hint)
    }

    /// As [`Self::run`], of any request, with its data at 8192.
    pub fn request(
        &mut self,
        request: BlockRequest,
        data_bytes: u32,
        side: Option<&SideRecord>,
        (unit, generation): (u32, u32),
    ) -> CompletionEntry {
        let mut entry = SubmissionEntry::new(Operation::Read, 0);
        request.encode(&mut entry);
        entry.data_bytes = data_bytes.into();
        self.carry_out(entry, side, (unit, generation), true)
    }

    /// Has the agent look.
    pub fn hint(&self) {
        rustix::io::write(&self.offer.hints[0].to_host, &1_u64.to_ne_bytes()).unwrap();
    }

    pub fn carry_out(
        &mut self,
        mut entry: SubmissionEntry,
        side: Option<&SideRecord>,
        (unit, generation): (u32, u32),
        hint: bool,
    ) -> CompletionEntry {
        self.token += 1;
        let operation = entry.operation();
        entry.token = self.token.into();
        entry.unit = unit.into();
        entry.nexus = 3.into();
        entry.nexus_generation = 1.into();
        entry.configuration_generation = generation.into();
        if entry.data_bytes.get() > 0 {
            entry.data_offset = 8192.into();
        }
        self.submissions.push(entry, side).unwrap();
        assert!(self.submissions.publish());
        if hint {
            self.hint();
        }
        let start = Instant::now();
        loop {
            if let Some(completion) = self.completions.pop().unwrap() {
                self.completions.release();
                assert_eq!(completion.token.get(), self.token);
                return completion;
            }
            assert!(start.elapsed() < PATIENCE, "no completion of {operation:?}");
            std::thread::yield_now();
        }
    }
}

pub const CONFIGURATION: &str = "
HANDLER vdisk_fileio {
    DEVICE disk {
        filename DISK
    }
}
HANDLER vdisk_nullio {
    DEVICE null_card {
        size_mb 16
    }
    DEVICE null_host {
        size_mb 16
        lunar_backend host
    }
}
TARGET_DRIVER ib_srpt {
    TARGET t {
        LUN 0 disk
        LUN 1 null_card
        LUN 2 null_host
        enabled 1
    }
}
";

pub fn unit(configuration: &control::Configuration, name: &str) -> u32 {
    configuration.units.iter().find(|unit| unit.name == name).unwrap().handle
}
