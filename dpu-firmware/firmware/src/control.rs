//! The control thread: the coordinator, and the socket of the control channel to the host agent.
//! The card connects and, when the channel ends, connects again; initiators never notice.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use lunar_offload_proto::control::{Decoder, Encoder, ToCard};
use lunar_platform::{Listener, Nanoseconds, Platform};
use lunar_target::{AgentLink, Coordinator};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{CONTROL_SLEEP, Clock, Stop, Wake};

/// Nanoseconds between two tries to connect.
const RETRY_NS: u64 = 100_000_000;

pub(crate) struct Control<P: Platform> {
    pub coordinator: Coordinator<P>,
    pub link: AgentLink,
    pub clock: Clock,
    pub path: PathBuf,
    pub wake: Wake,
    pub groups: Vec<Wake>,
    pub stop: Stop,
}

/// A connected control channel.
struct Channel {
    stream: UnixStream,
    decoder: Decoder<ToCard>,
    encoder: Encoder,
    unsent: VecDeque<u8>,
}

impl<P: Platform> Control<P> {
    pub(crate) fn run(mut self) -> anyhow::Result<()> {
        let mut channel: Option<Channel> = None;
        let mut retry_at = Nanoseconds(0);
        while !self.stop.is_requested() {
            let now = self.clock.now();
            if channel.is_none() && now >= retry_at {
                channel = self.connect();
                retry_at = now.plus(RETRY_NS);
            }
            let mut busy = self.coordinator.poll();
            if let Some(open) = channel.as_mut() {
                busy |= self.serve(open);
            }
            self.link.poll(&mut self.coordinator, now);
            if let Some(open) = channel.as_mut()
                && let Err(reason) = self.send(open)
            {
                tracing::warn!(%reason, "the control channel ended");
                channel = None;
                self.link.lost(&mut self.coordinator);
                retry_at = now.plus(RETRY_NS);
            }
            if busy || self.coordinator.take_sent() {
                self.groups.iter().for_each(Wake::signal);
            } else {
                self.sleep(channel.as_ref());
            }
        }
        self.link.shut_down("the firmware is shut down");
        if let Some(open) = channel.as_mut() {
            // The channel ends either way.
            let _ = self.send(open);
        }
        Ok(())
    }

    fn connect(&mut self) -> Option<Channel> {
        let stream = UnixStream::connect(&self.path).ok()?;
        stream.set_nonblocking(true).ok()?;
        tracing::info!(path = %self.path.display(), "connected to the host agent");
        Some(Channel {
            stream,
            decoder: Decoder::new(),
            encoder: Encoder::new(),
            unsent: VecDeque::new(),
        })
    }

    /// Reads what came. Errors end the channel in [`Self::send`], which knows them too.
    fn serve(&mut self, channel: &mut Channel) -> bool {
        let mut bytes = [0; 16 * 1024];
        let mut busy = false;
        loop {
            match channel.stream.read(&mut bytes) {
                Ok(0) => {
                    self.link.end("the agent closed the control channel");
                    return busy;
                }
                Ok(count) => {
                    busy = true;
                    channel.decoder.push(bytes.get(..count).unwrap_or(&[]));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.link.end(&format!("reading from the agent failed: {error}"));
                    return busy;
                }
            }
        }
        loop {
            match channel.decoder.next_message() {
                Ok(Some(message)) => self.link.receive(message, &mut self.coordinator),
                Ok(None) => return busy,
                Err(error) => {
                    self.link.end(&format!("the agent sent a malformed frame: {error}"));
                    return busy;
                }
            }
        }
    }

    /// Writes what there is to say. `Err` says why the channel is over.
    fn send(&mut self, channel: &mut Channel) -> Result<(), String> {
        while let Some(message) = self.link.next_message() {
            match channel.encoder.to_bytes(&message) {
                Ok(bytes) => channel.unsent.extend(bytes),
                Err(error) => tracing::error!(%error, "a control message could not be sent"),
            }
        }
        while !channel.unsent.is_empty() {
            let (bytes, _) = channel.unsent.as_slices();
            match channel.stream.write(bytes) {
                Ok(count) => drop(channel.unsent.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("writing to the agent failed: {error}")),
            }
        }
        match self.link.take_closing() {
            Some(reason) => Err(reason),
            None => Ok(()),
        }
    }

    fn sleep(&self, channel: Option<&Channel>) {
        let wake = self.wake.fd();
        let stream = channel.map_or(wake, |channel| channel.stream.as_fd());
        let listener = self.coordinator.listener().event_fd().unwrap_or(wake);
        let mut fds =
            [wake, stream, listener].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        let timeout =
            Timespec { tv_sec: 0, tv_nsec: i64::try_from(CONTROL_SLEEP.as_nanos()).unwrap_or(0) };
        // An interrupted sleep is a short one.
        let _ = poll(&mut fds, Some(&timeout));
        self.wake.clear();
    }
}
