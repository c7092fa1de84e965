//! Where connection requests of a device arrive, and a request on its way to the group that answers.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use lunar_pcie::{HintLine, Segment};
use lunar_platform::{ConnectRequest, Listener, PeerAddress, PrivateData};

use crate::connection_manager::{Inbox, LocalEnd, Message, Received, Way};
use crate::device::EmulatedDevice;
use crate::fabric::{self, Fabric, Kind};
use crate::shared::PeerGroup;
use crate::unix::UnixListener;

/// A connection request (REQ received, nothing answered). Dropping it rejects without private data.
#[derive(Debug)]
pub struct EmulatedConnection(Option<Pending>);

/// What a request consists of.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) way: Way,
    pub(crate) endpoint: PeerGroup,
    pub(crate) queue_pair: Segment,
    pub(crate) ring_bytes: u32,
}

impl EmulatedConnection {
    /// Takes the request out, so that dropping the shell rejects nothing.
    pub(crate) fn into_pending(mut self) -> Option<Pending> {
        self.0.take()
    }

    /// Rejects with private data.
    pub(crate) fn reject(self, private_data: &[u8]) {
        if let Some(pending) = self.into_pending() {
            pending.reject(private_data);
        }
    }
}

impl Pending {
    /// Rejects with private data.
    pub(crate) fn reject(mut self, private_data: &[u8]) {
        // IBTA 12.6.7: a REJ carries 148 bytes.
        let private_data = PrivateData::new(private_data.get(..148).unwrap_or(private_data));
        if self.way.send(Message::Reject { private_data }).is_ok() {
            self.endpoint.tell(|| false, false);
        }
    }
}

impl Drop for EmulatedConnection {
    fn drop(&mut self) {
        if let Some(pending) = self.0.take() {
            pending.reject(&[]);
        }
    }
}

/// Sockets are looked at in one of so many polls.
const SOCKET_POLLS: u32 = 16;

/// Offers one service of a device on a fabric, until it is dropped.
#[derive(Debug)]
pub struct EmulatedListener {
    device: EmulatedDevice,
    place: Place,
}

#[derive(Debug)]
enum Place {
    InProcess {
        services: Arc<Mutex<BTreeMap<String, Arc<Inbox<LocalEnd>>>>>,
        service: String,
        inbox: Arc<Inbox<LocalEnd>>,
    },
    Unix {
        listener: UnixListener,
        /// Calls of `poll` since the last find, for the sockets' duty cycle.
        polls: u32,
    },
}

impl EmulatedListener {
    pub(crate) fn new(device: &EmulatedDevice, fabric: &Fabric, service: &str) -> io::Result<Self> {
        let place = match &fabric.0 {
            Kind::InProcess(services) => {
                let inbox = Arc::new(Inbox::new(Some(HintLine::new()?)));
                fabric::offer(services, service, &inbox)?;
                Place::InProcess {
                    services: Arc::clone(services),
                    service: service.to_owned(),
                    inbox,
                }
            }
            Kind::Unix(directory) => Place::Unix {
                listener: UnixListener::bind(&fabric::socket_path(directory, service))?,
                polls: 0,
            },
        };
        Ok(Self { device: device.clone(), place })
    }

    fn next_way(&mut self) -> Option<(Way, Received)> {
        match &mut self.place {
            Place::InProcess { inbox, .. } => {
                let mut end = inbox.pop().map(Way::Local);
                if end.is_none() {
                    // Nothing left: the level of the wake-up line goes down. A push between the two
                    // is found by the second look.
                    if let Some(wake) = &inbox.wake {
                        wake.drain();
                    }
                    end = inbox.pop().map(Way::Local);
                }
                let mut way = end?;
                let received = way.receive();
                Some((way, received))
            }
            Place::Unix { listener, polls } => {
                // System calls: not in every poll. Who sleeps on the descriptor polls until it is
                // quiet again.
                *polls = polls.wrapping_add(1);
                if *polls % SOCKET_POLLS != 1 {
                    return None;
                }
                let (end, received) = listener.next()?;
                *polls = 0;
                Some((Way::Unix(end), received))
            }
        }
    }
}

impl Listener for EmulatedListener {
    type Connection = EmulatedConnection;

    fn poll(&mut self) -> Option<ConnectRequest<EmulatedConnection>> {
        if self.device.is_unreachable() {
            return None;
        }
        // What is not a proper REQ is dropped with its way, which the other end sees as `Failed`.
        while let Some((way, received)) = self.next_way() {
            let Received::Message(Message::Request {
                endpoint,
                queue_pair,
                ring_bytes,
                peer,
                private_data,
            }) = received
            else {
                continue;
            };
            if endpoint.is_valid() {
                let pending = Pending { way, endpoint, queue_pair, ring_bytes };
                return Some(ConnectRequest {
                    connection: EmulatedConnection(Some(pending)),
                    private_data,
                    peer: PeerAddress::new(&peer),
                    device: 0,
                });
            }
        }
        None
    }

    fn reject(&mut self, connection: EmulatedConnection, private_data: &[u8]) {
        connection.reject(private_data);
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.place {
            Place::InProcess { inbox, .. } => inbox.wake.as_ref().map(HintLine::fd),
            Place::Unix { listener, .. } => Some(listener.event_fd()),
        }
    }
}

impl Drop for EmulatedListener {
    fn drop(&mut self) {
        match &mut self.place {
            Place::InProcess { services, service, inbox } => {
                fabric::withdraw(services, service);
                inbox.close();
            }
            Place::Unix { .. } => {}
        }
    }
}
