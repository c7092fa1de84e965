//! The keeper's end of the export over RDMA. A process of its own, the *exporter*, holds the RDMA device open: whoever
//! does so has to end before the kernel lets a device go (soft RoCE has no other way), and the memory must not end with a
//! device. The exporter is this program once more, with `--exporter`, and a client of the keeper like any other, on a
//! socket that it finds as its standard input. What it does is in `rdma`.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tracing::warn;

use crate::protocol::RdmaBlobs;

/// From the exporter's end to the next one's start; it doubles up to [`PAUSE_MAX`] while they fail.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(32);

/// Keeps an exporter running while there is a device for it.
pub(crate) struct Export {
    /// The RDMA device, and a port of it if only that is used: `mlx5_0:1`.
    device: String,
    endpoint: SocketAddr,
    exporter: Option<(Child, OwnedFd)>,
    /// What the last exporter said. It stays while there is none: a card tries it until it is told of another one.
    pub(crate) blobs: Option<RdmaBlobs>,
    pause: Duration,
    not_before: Instant,
}

impl Export {
    /// Of the memory on `device`, to cards that connect at `endpoint`.
    pub(crate) fn new(device: String, endpoint: SocketAddr) -> Self {
        let not_before = Instant::now();
        Self { device, endpoint, exporter: None, blobs: None, pause: PAUSE, not_before }
    }

    /// Starts an exporter.
    pub(crate) fn start(&mut self) -> anyhow::Result<()> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let child = Command::new("/proc/self/exe")
            .args(["--exporter", "--socket", "/dev/stdin", "--rdma", &self.device])
            .args(["--rdma-listen", &self.endpoint.to_string()])
            .stdin(Stdio::from(theirs))
            .spawn()
            .context("the exporter cannot be started")?;
        self.exporter = Some((child, ours));
        Ok(())
    }

    /// Starts an exporter if there is none, the device is there, and it is time.
    pub(crate) fn start_again(&mut self) {
        if self.exporter.is_some() || Instant::now() < self.not_before || !self.device_is_there() {
            return;
        }
        self.not_before = Instant::now() + self.pause;
        self.pause = (2 * self.pause).min(PAUSE_MAX);
        if let Err(error) = self.start() {
            warn!("{error:#}");
        }
    }

    fn device_is_there(&self) -> bool {
        let name = self.device.split(':').next().unwrap_or_default();
        Path::new("/sys/class/infiniband").join(name).exists()
    }

    /// The exporter's socket.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.exporter.as_ref().map(|(_, socket)| socket.as_fd())
    }

    /// The exporter told how the memory is reached.
    pub(crate) fn exported(&mut self, blobs: RdmaBlobs) {
        self.blobs = Some(blobs);
        self.pause = PAUSE;
    }

    /// The exporter is gone, or has to go.
    pub(crate) fn ended(&mut self) {
        if let Some((mut child, _)) = self.exporter.take() {
            // It may be on its way out already.
            let _ = child.kill();
            let _ = child.wait();
            self.not_before = Instant::now() + self.pause;
            warn!(
                device = self.device,
                "the memory is not exported over RDMA any more; it will be once the device can be used again"
            );
        }
    }

    /// When [`Self::start_again`] should be called again at the latest; `None` while there is an exporter.
    pub(crate) fn look_again_in(&self) -> Option<Duration> {
        self.exporter.is_none().then_some(PAUSE)
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        if let Some((mut child, socket)) = self.exporter.take() {
            // That is its sign to end.
            drop(socket);
            let _ = child.wait();
        }
    }
}
