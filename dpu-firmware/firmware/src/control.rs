//! The control thread: the coordinator, and the control channel to the host agent.
//! The card connects and, when the channel ends, connects again; initiators never notice.

use std::collections::VecDeque;

use lunar_offload_proto::control::{Decoder, Encoder, ToCard};
use lunar_platform::{Listener, Nanoseconds, Platform};
use lunar_target::{AgentLink, Coordinator};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::socket::{Route, Socket};
use crate::{CONTROL_SLEEP, Clock, Stop, Wake};

/// Nanoseconds until the card connects again to an agent that it had met.
const RETRY_NS: u64 = 100_000_000;

pub(crate) struct Control<P: Platform> {
    pub coordinator: Coordinator<P>,
    pub link: AgentLink,
    pub clock: Clock,
    pub route: Route,
    /// What was logged of the last try to connect.
    pub said: String,
    pub wake: Wake,
    pub groups: Vec<Wake>,
    pub stop: Stop,
}

/// A control channel, or the attempt at one.
struct Channel {
    socket: Socket,
    /// The agent has said something: it is there, and it takes this card.
    has_met: bool,
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
                channel = self.connect(now);
                retry_at = now.plus(self.route.retry_ns());
            }
            let mut busy = self.coordinator.poll();
            if let Some(open) = channel.as_mut() {
                busy |= self.serve(open, now);
            }
            self.link.poll(&mut self.coordinator, now);
            if let Some(open) = channel.as_mut()
                && let Err(reason) = self.send(open)
            {
                if open.has_met {
                    tracing::warn!(%reason, "the control channel ended");
                    retry_at = now.plus(RETRY_NS);
                } else {
                    self.in_vain(&reason);
                    retry_at = now.plus(self.route.retry_ns());
                }
                channel = None;
                self.link.lost(&mut self.coordinator);
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
            open.socket.finish();
        }
        Ok(())
    }

    fn connect(&mut self, now: Nanoseconds) -> Option<Channel> {
        match self.route.connect(now) {
            Ok(socket) => Some(Channel {
                socket,
                has_met: false,
                decoder: Decoder::new(),
                encoder: Encoder::new(),
                unsent: VecDeque::new(),
            }),
            Err(reason) => {
                self.in_vain(&reason);
                None
            }
        }
    }

    /// Logs why a try came to nothing, once: it is repeated until it comes to something.
    fn in_vain(&mut self, reason: &str) {
        if self.said != reason {
            tracing::warn!(agent = %self.route, "no host agent yet: {reason}; trying until there is one");
            self.said = reason.to_owned();
        }
    }

    /// Reads what came. Errors end the channel in [`Self::send`], which knows them too.
    fn serve(&mut self, channel: &mut Channel, now: Nanoseconds) -> bool {
        let mut bytes = [0; 16 * 1024];
        let mut busy = false;
        loop {
            match channel.socket.read(&mut bytes, now) {
                Ok(Some(0)) => {
                    self.link.end("the agent closed the control channel");
                    return busy;
                }
                Ok(Some(count)) => {
                    busy = true;
                    channel.decoder.push(bytes.get(..count).unwrap_or(&[]));
                    if !channel.has_met {
                        channel.has_met = true;
                        self.said.clear();
                        tracing::info!(agent = %self.route, "connected to the host agent");
                    }
                }
                Ok(None) => break,
                Err(reason) => {
                    self.link.end(&reason);
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
            match channel.socket.write(bytes)? {
                Some(count) => drop(channel.unsent.drain(..count)),
                None => break,
            }
        }
        match self.link.take_closing() {
            Some(reason) => Err(reason),
            None => Ok(()),
        }
    }

    fn sleep(&self, channel: Option<&Channel>) {
        let wake = self.wake.fd();
        let listener = self.coordinator.listener().event_fd().unwrap_or(wake);
        let mut fds = [wake, wake, listener].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        if let Some(channel) = channel {
            let mut interest = channel.socket.interest();
            if !channel.unsent.is_empty() {
                interest |= PollFlags::OUT;
            }
            fds[1] = PollFd::from_borrowed_fd(channel.socket.fd(), interest);
        }
        let timeout =
            Timespec { tv_sec: 0, tv_nsec: i64::try_from(CONTROL_SLEEP.as_nanos()).unwrap_or(0) };
        // An interrupted sleep is a short one.
        let _ = poll(&mut fds, Some(&timeout));
        self.wake.clear();
    }
}
