//! The control channel's socket on the card: a Unix socket, or TCP with mutual TLS. Nothing here waits: what cannot be
//! done now is done at a later look, so that an agent that hangs costs the control thread nothing.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use lunar_control_channel::rustls::ClientConnection;
use lunar_control_channel::{ControlAddress, Identity, Role, Witness};
use lunar_platform::Nanoseconds;
use rustix::event::PollFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::Options;

/// Nanoseconds that connecting and both proofs may take together.
const HANDSHAKE_NS: u64 = 10_000_000_000;

/// How long a machine may be silent before the kernel counts it as gone: what a machine that lost its power does not
/// say.
const SILENCE: Duration = Duration::from_secs(10);

/// The way to the agent.
#[derive(Clone, Debug)]
pub(crate) enum Route {
    Unix(PathBuf),
    /// With the directory of the card's keys.
    Tls(SocketAddr, PathBuf),
}

impl Route {
    /// What the command line says, checked as far as it can be without the agent.
    pub(crate) fn new(options: &Options) -> anyhow::Result<Self> {
        let address = match &options.control {
            ControlAddress::Unix(path) => return Ok(Self::Unix(path.clone())),
            ControlAddress::Tcp(address) => *address,
        };
        let keys = options.tls.clone().with_context(|| {
            format!(
                "--control {address}: over a network card and agent have to prove themselves, and this card has no \
                 keys: make some on the host with `lunar keys DIRECTORY`, copy DIRECTORY/card here, and name it with \
                 --tls"
            )
        })?;
        // Read again for every connection; here, so that a mistake is told at the start.
        let identity = Identity::load(&keys, Role::Card)?;
        if let Some(warning) = identity.warning() {
            tracing::warn!(keys = %keys.display(), "no agent will take this card: {warning}");
        }
        Ok(Self::Tls(address, keys))
    }

    /// Nanoseconds until the next try after one that came to nothing.
    pub(crate) fn retry_ns(&self) -> u64 {
        match self {
            Self::Unix(_) => 100_000_000,
            // Each costs the other machine a handshake.
            Self::Tls(..) => 1_000_000_000,
        }
    }

    /// Begins to connect. `Err` says why not, in words that follow the agent's name.
    pub(crate) fn connect(&self, now: Nanoseconds) -> Result<Socket, String> {
        match self {
            Self::Unix(path) => unix(path).map(Socket::Unix).map_err(unreachable),
            Self::Tls(address, keys) => {
                let identity =
                    Identity::load(keys, Role::Card).map_err(|error| error.to_string())?;
                let (session, witness) = identity.card().map_err(|error| error.to_string())?;
                let stream = tcp(*address).map_err(unreachable)?;
                let until = now.plus(HANDSHAKE_NS);
                Ok(Socket::Tls(Box::new(Tls { stream, session, witness, until, is_over: false })))
            }
        }
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tls(address, _) => address.fmt(f),
        }
    }
}

/// One connection to the agent, or the attempt at one.
pub(crate) enum Socket {
    Unix(UnixStream),
    Tls(Box<Tls>),
}

impl Socket {
    /// The next bytes; `Some(0)` is the end, `None` says that there are none now. `Err` says why the connection is over.
    pub(crate) fn read(
        &mut self,
        bytes: &mut [u8],
        now: Nanoseconds,
    ) -> Result<Option<usize>, String> {
        match self {
            Self::Unix(stream) => now_or_never(|| stream.read(bytes))
                .map_err(|error| format!("reading failed: {error}")),
            Self::Tls(tls) => tls.read(bytes, now),
        }
    }

    /// Takes as many bytes as there is room for now; `None` when there is none.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<Option<usize>, String> {
        match self {
            Self::Unix(stream) => now_or_never(|| stream.write(bytes))
                .map_err(|error| format!("writing failed: {error}")),
            Self::Tls(tls) => tls.write(bytes),
        }
    }

    /// Says that nothing more comes, after what was written.
    pub(crate) fn finish(&mut self) {
        // The connection ends either way.
        match self {
            Self::Unix(stream) => drop(stream.shutdown(std::net::Shutdown::Write)),
            Self::Tls(tls) => {
                tls.session.send_close_notify();
                let _ = tls.send();
            }
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tls(tls) => tls.stream.as_fd(),
        }
    }

    /// What to wait for besides bytes to read.
    pub(crate) fn interest(&self) -> PollFlags {
        match self {
            Self::Tls(tls) if tls.session.wants_write() => PollFlags::IN | PollFlags::OUT,
            _ => PollFlags::IN,
        }
    }
}

/// TLS over TCP. A socket that is still connecting takes no bytes and has none, which is all that must be known of it.
pub(crate) struct Tls {
    stream: TcpStream,
    session: ClientConnection,
    witness: Witness,
    /// When a handshake that is not over has taken too long.
    until: Nanoseconds,
    /// The agent has closed its end.
    is_over: bool,
}

impl Tls {
    fn read(&mut self, bytes: &mut [u8], now: Nanoseconds) -> Result<Option<usize>, String> {
        // In this order, because the agent's last words explain why nothing can be sent any more.
        self.receive().and_then(|()| self.send()).map_err(Trouble::words)?;
        if self.session.is_handshaking() {
            if self.is_over {
                return Err("it closed the connection before it had proved itself".to_owned());
            }
            if now >= self.until {
                let seconds = HANDSHAKE_NS / 1_000_000_000;
                return Err(format!(
                    "it has neither answered nor proved itself within {seconds} s"
                ));
            }
        }
        match now_or_never(|| self.session.reader().read(bytes)) {
            Ok(read) => Ok(read),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                Err("the agent is gone without a word".to_owned())
            }
            Err(error) => Err(format!("reading failed: {error}")),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<Option<usize>, String> {
        let taken = self.session.writer().write(bytes).map_err(|error| error.to_string())?;
        self.send().map_err(Trouble::words)?;
        Ok((taken > 0).then_some(taken))
    }

    fn send(&mut self) -> Result<(), Trouble> {
        while self.session.wants_write() {
            match now_or_never(|| self.session.write_tls(&mut self.stream)) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => {
                    return Err(match self.receive() {
                        Err(told @ Trouble::Tls(_)) => told,
                        Ok(()) | Err(Trouble::Socket(_)) => Trouble::Socket(error),
                    });
                }
            }
        }
        Ok(())
    }

    /// Takes what has come, but no more than the caller has room for: TLS wants nothing while it has bytes to hand out.
    fn receive(&mut self) -> Result<(), Trouble> {
        while self.session.wants_read() && !self.is_over {
            match now_or_never(|| self.session.read_tls(&mut self.stream))
                .map_err(Trouble::Socket)?
            {
                Some(count) => self.is_over = count == 0,
                None => break,
            }
            if let Err(error) = self.session.process_new_packets() {
                // The agent is told what is wrong with it.
                let _ = now_or_never(|| self.session.write_tls(&mut self.stream));
                return Err(Trouble::Tls(self.witness.explain(&error)));
            }
        }
        Ok(())
    }
}

/// Why a connection is over.
enum Trouble {
    /// In words already.
    Tls(String),
    Socket(io::Error),
}

impl Trouble {
    fn words(self) -> String {
        match self {
            Self::Tls(words) => words,
            Self::Socket(error) => unreachable(error),
        }
    }
}

fn unreachable(error: io::Error) -> String {
    format!("it cannot be reached: {error}")
}

/// `None` where it would have to wait.
fn now_or_never(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        match call() {
            Ok(count) => return Ok(Some(count)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn unix(path: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(path)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Begins to connect.
fn tcp(address: SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, SILENCE / 2)?;
    sockopt::set_tcp_keepintvl(&socket, Duration::from_secs(1))?;
    sockopt::set_tcp_user_timeout(&socket, u32::try_from(SILENCE.as_millis()).unwrap_or(u32::MAX))?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket.into()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};
    use std::os::unix::net::UnixListener;
    use std::time::Instant;

    use lunar_control_channel::make::{Authority, Validity};
    use lunar_control_channel::rustls::{ServerConnection, StreamOwned};

    use super::*;

    /// How long anything may take; a test that needs it all has failed.
    const PATIENCE: Duration = Duration::from_secs(30);

    const START: Nanoseconds = Nanoseconds(0);

    fn authority() -> Authority {
        Authority::new(Validity::days(2)).unwrap()
    }

    fn keys(folder: &Path, authority: &Authority, role: Role) -> PathBuf {
        let directory = folder.join(format!("{}-{}", authority.name(), role.name()));
        authority.write_identity(&directory, role, Validity::days(2)).unwrap();
        directory
    }

    fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// An agent at `listener` with the keys of `directory` as far as TLS goes: it sends what it is sent back. Its error.
    fn echo(listener: &TcpListener, directory: &Path) -> Result<(), String> {
        let identity = Identity::load(directory, Role::Agent).unwrap();
        let (configuration, witness) = identity.agent().unwrap();
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let session = ServerConnection::new(configuration).unwrap();
        let mut stream = StreamOwned::new(session, stream);
        let ended = send_back(&mut stream).and_then(|()| {
            stream.conn.send_close_notify();
            stream.flush()
        });
        ended.map_err(|error| witness.explain_io(&error))
    }

    fn send_back(mut stream: impl Read + Write) -> io::Result<()> {
        let mut bytes = [0; 4096];
        loop {
            let count = stream.read(&mut bytes)?;
            if count == 0 {
                return Ok(());
            }
            stream.write_all(&bytes[..count])?;
            stream.flush()?;
        }
    }

    /// Reads, without time for the card, until there is something or an end.
    fn next(socket: &mut Socket, bytes: &mut [u8]) -> Result<usize, String> {
        let start = Instant::now();
        loop {
            if let Some(count) = socket.read(bytes, START)? {
                return Ok(count);
            }
            assert!(start.elapsed() < PATIENCE, "nothing came");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sends much more than a socket holds, and reads it back.
    fn is_echoed(socket: &mut Socket) {
        let sent: Vec<u8> = (0..1 << 20).map(|at: u32| at.to_le_bytes()[1]).collect();
        let (mut left, mut received) = (sent.as_slice(), Vec::new());
        let mut bytes = [0; 16 << 10];
        let start = Instant::now();
        while received.len() < sent.len() {
            assert!(start.elapsed() < PATIENCE, "{} of {} bytes", received.len(), sent.len());
            if let Some(count) = socket.write(left).unwrap() {
                left = &left[count..];
            }
            if let Some(count) = socket.read(&mut bytes, START).unwrap() {
                received.extend_from_slice(&bytes[..count]);
            }
        }
        assert!(received == sent, "the bytes are others");
        socket.finish();
        assert_eq!(next(socket, &mut bytes), Ok(0));
    }

    #[test]
    fn bytes_pass_both_ways_over_either_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let listener = UnixListener::bind(&path).unwrap();
        let agent = std::thread::spawn(move || send_back(listener.accept().unwrap().0));
        is_echoed(&mut Route::Unix(path).connect(START).unwrap());
        agent.join().unwrap().unwrap();

        let ours = authority();
        let directory = keys(folder.path(), &ours, Role::Agent);
        let (listener, address) = self::listener();
        let agent = std::thread::spawn(move || echo(&listener, &directory));
        let route = Route::Tls(address, keys(folder.path(), &ours, Role::Card));
        is_echoed(&mut route.connect(START).unwrap());
        assert_eq!(agent.join().unwrap(), Ok(()));
    }

    #[test]
    fn an_agent_that_another_authority_signed_is_refused_and_told() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, theirs) = (authority(), authority());
        let directory = keys(folder.path(), &theirs, Role::Agent);
        let (listener, address) = listener();
        let agent = std::thread::spawn(move || echo(&listener, &directory));
        let route = Route::Tls(address, keys(folder.path(), &ours, Role::Card));
        let reason = next(&mut route.connect(START).unwrap(), &mut [0; 16]).unwrap_err();
        assert!(reason.contains(&format!("is signed by `{}`", theirs.name())), "{reason}");
        let told = agent.join().unwrap().unwrap_err();
        assert!(told.starts_with("the card refuses the certificate of this agent"), "{told}");
    }

    /// The card has done its part of the handshake when the agent judges it, so it hears of it as of any message.
    #[test]
    fn a_card_that_is_refused_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, theirs) = (authority(), authority());
        let directory = keys(folder.path(), &ours, Role::Agent);
        let believes_ours = keys(folder.path(), &theirs, Role::Card);
        let mut roots = std::fs::read(directory.join("ca.pem")).unwrap();
        roots.extend(std::fs::read(believes_ours.join("ca.pem")).unwrap());
        std::fs::write(believes_ours.join("ca.pem"), roots).unwrap();
        let (listener, address) = listener();
        let agent = std::thread::spawn(move || echo(&listener, &directory));
        let mut socket = Route::Tls(address, believes_ours).connect(START).unwrap();
        let reason = next(&mut socket, &mut [0; 16]).unwrap_err();
        assert!(
            reason.starts_with("the agent refuses the certificate of this card")
                && reason.contains(theirs.name()),
            "{reason}"
        );
        assert!(agent.join().unwrap().is_err());
    }

    #[test]
    fn an_agent_that_says_nothing_or_something_else_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let card = keys(folder.path(), &authority(), Role::Card);
        let (listener, address) = listener();
        let route = Route::Tls(address, card);
        let mut socket = route.connect(START).unwrap();
        let _silent = listener.accept().unwrap();
        // Not one of these waits: the test would hang.
        assert_eq!(socket.read(&mut [0; 16], Nanoseconds(HANDSHAKE_NS - 1)), Ok(None));
        let reason = socket.read(&mut [0; 16], Nanoseconds(HANDSHAKE_NS)).unwrap_err();
        assert!(reason.contains("neither answered nor proved itself within 10 s"), "{reason}");

        let mut socket = route.connect(START).unwrap();
        let (mut agent, _) = listener.accept().unwrap();
        agent.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").unwrap();
        let reason = next(&mut socket, &mut [0; 16]).unwrap_err();
        assert!(reason.contains("what it sent is not TLS"), "{reason}");
    }

    #[test]
    fn nobody_at_the_address_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (listener, address) = listener();
        drop(listener);
        let route = Route::Tls(address, keys(folder.path(), &authority(), Role::Card));
        let reason = match route.connect(START) {
            Ok(mut socket) => next(&mut socket, &mut [0; 16]).unwrap_err(),
            Err(reason) => reason,
        };
        assert!(reason.contains("cannot be reached: Connection refused"), "{reason}");
        let unix = Route::Unix(folder.path().join("absent")).connect(START);
        assert!(unix.err().unwrap().contains("cannot be reached: No such file"));
    }

    #[test]
    fn an_address_without_keys_is_refused_with_the_way_out() {
        let options = |words: &[&str]| {
            let words = std::iter::once(&"lunar-firmware").chain(words);
            #[derive(clap::Parser)]
            struct Line {
                #[command(flatten)]
                options: Options,
            }
            <Line as clap::Parser>::try_parse_from(words).map(|line| line.options)
        };
        let wanted = options(&["--control", "192.0.2.1:5558"]).unwrap();
        let reason = Route::new(&wanted).unwrap_err().to_string();
        assert!(reason.contains("192.0.2.1:5558") && reason.contains("lunar keys"), "{reason}");
        assert!(options(&["--control", "somewhere"]).is_err());
        assert!(matches!(Route::new(&options(&[]).unwrap()), Ok(Route::Unix(_))));
    }
}
