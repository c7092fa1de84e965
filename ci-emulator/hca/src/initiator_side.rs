//! What only the initiator's end has: asking for connections and exposing memory.

use std::io;

use lunar_pcie::Segment;
use lunar_platform::{PrivateData, QpHandle, QpParameters};

use crate::connection_manager::{LocalEnd, Message, Way};
use crate::fabric::{self, Fabric, Kind};
use crate::group::EmulatedHca;
use crate::queue_pair::QpState;
use crate::remote_keys::{RemoteAccess, RemoteKey};
use crate::shared::{EndState, PeerGroup, QueuePairMemory};
use crate::unix::UnixEnd;

/// Names one connection attempt of one group; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectId(pub u64);

/// How a connection attempt ended.
#[derive(Clone, Copy, Debug)]
pub enum ConnectEvent {
    /// REP arrived and RTU was sent: `qp` is live.
    Accepted {
        /// The attempt.
        id: ConnectId,
        /// The connected queue pair.
        qp: QpHandle,
        /// The REP's private data.
        private_data: PrivateData,
    },
    /// REJ arrived.
    Rejected {
        /// The attempt.
        id: ConnectId,
        /// The REJ's private data; empty when the passive end just dropped the request.
        private_data: PrivateData,
    },
    /// Nobody offers the service, the port is down, or the passive end went away.
    Failed {
        /// The attempt.
        id: ConnectId,
    },
}

/// A connection attempt that has no answer yet.
#[derive(Debug)]
pub(crate) struct Attempt {
    id: ConnectId,
    index: u32,
    /// REP arrived; the queue pair goes live when the owner hears of it.
    answered: bool,
}

impl EmulatedHca {
    /// Asks `service` on `fabric` for a connection (CM REQ with `private_data`). The answer, also a
    /// failure that is known at once, comes from [`Self::poll_connect`] under the id given here.
    pub fn connect(
        &mut self,
        fabric: &Fabric,
        service: &str,
        parameters: QpParameters,
        private_data: &[u8],
    ) -> ConnectId {
        let id = ConnectId(self.attempts_made);
        self.attempts_made += 1;
        if self.request(id, fabric, service, parameters, private_data).is_err() {
            self.answer(ConnectEvent::Failed { id });
        }
        id
    }

    fn request(
        &mut self,
        id: ConnectId,
        fabric: &Fabric,
        service: &str,
        parameters: QpParameters,
        private_data: &[u8],
    ) -> io::Result<()> {
        if self.is_dead() || self.device().is_unreachable() || !self.grants(parameters) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let (way, far_end) = match &fabric.0 {
            Kind::InProcess(services) => {
                let inbox = fabric::find(services, service)
                    .ok_or(io::Error::from(io::ErrorKind::NotFound))?;
                let (near, far) = LocalEnd::pair();
                (Way::Local(near), Some((inbox, far)))
            }
            Kind::Unix(_) if !self.keys.segments().iter().all(|known| known.fd().is_some()) => {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            Kind::Unix(directory) => {
                (Way::Unix(UnixEnd::connect(&fabric::socket_path(directory, service))?), None)
            }
        };
        let ring_bytes = self.device().state.config.message_ring_bytes;
        let peer = self.device().state.config.name.clone();
        let memory = QueuePairMemory::create(ring_bytes)?;
        let queue_pair = memory.segment.clone();
        let handle = self.create(memory, parameters, way)?;
        let request = Message::Request {
            endpoint: self.endpoint(handle.index),
            queue_pair,
            ring_bytes,
            peer,
            private_data: PrivateData::new(private_data),
        };
        let mut messages = vec![request];
        messages.extend(self.announcements());
        let mut sent = Ok(());
        self.with(handle.index, |qp, _| {
            if let Some(way) = &mut qp.way {
                sent = messages.into_iter().try_for_each(|message| way.send(message));
            }
        });
        if let (Ok(()), Some((inbox, far))) = (sent, far_end) {
            sent = inbox.push(far);
        }
        if sent.is_err() {
            self.remove(handle.index);
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        self.attempts.push(Attempt { id, index: handle.index, answered: false });
        Ok(())
    }

    /// The next answer to a connection attempt. With [`ConnectEvent::Accepted`] the RTU goes out.
    pub fn poll_connect(&mut self) -> Option<ConnectEvent> {
        self.refresh();
        let mut position = 0;
        while let Some(attempt) = self.attempts.get(position) {
            let (index, before) = (attempt.index, self.attempts.len());
            if !attempt.answered {
                self.take_messages(index);
            }
            position += usize::from(self.attempts.len() == before);
        }
        let now = self.engine.now;
        let (_, event) = self.connect_events.pop_front_if(|(due, _)| *due <= now)?;
        if let ConnectEvent::Accepted { id, qp, .. } = event {
            self.attempts.retain(|attempt| attempt.id != id);
            self.go_live(qp.index);
        }
        Some(event)
    }

    fn go_live(&mut self, index: u32) {
        self.with(index, |qp, _| {
            if qp.state == QpState::Connecting {
                qp.state = QpState::Live;
                qp.memory.set_state(EndState::Ready);
            }
            // A peer that is gone by now is noticed like one that goes later.
            let _ = qp.way.as_mut().map(|way| way.send(Message::ReadyToUse));
        });
        self.tell_connection_manager(index);
    }

    fn answer(&mut self, event: ConnectEvent) {
        let last = self.connect_events.back().map_or(0, |(due, _)| *due);
        let due = self.engine.due().max(last);
        self.connect_events.push_back((due, event));
    }

    /// The attempt on queue pair `index` that waits for an answer.
    fn unanswered(&mut self, index: u32) -> Option<usize> {
        self.attempts.iter().position(|attempt| attempt.index == index && !attempt.answered)
    }

    /// REP arrived.
    pub(crate) fn on_reply(&mut self, index: u32, endpoint: PeerGroup, private_data: PrivateData) {
        let Some(position) = self.unanswered(index) else { return };
        let Some(attempt) = self.attempts.get_mut(position) else { return };
        let id = attempt.id;
        attempt.answered = true;
        if !endpoint.is_valid() {
            self.engine.statistics.peer_lies += 1;
            self.attempts.swap_remove(position);
            self.remove(index);
            self.answer(ConnectEvent::Failed { id });
            return;
        }
        let mut handle = None;
        self.with(index, |qp, _| {
            qp.peer = Some(endpoint);
            handle = Some(qp.handle);
        });
        if let Some(qp) = handle {
            self.answer(ConnectEvent::Accepted { id, qp, private_data });
        }
    }

    /// REJ arrived.
    pub(crate) fn on_reject(&mut self, index: u32, private_data: PrivateData) {
        if let Some(position) = self.unanswered(index) {
            let id = self.attempts.swap_remove(position).id;
            self.remove(index);
            self.answer(ConnectEvent::Rejected { id, private_data });
        }
    }

    /// The peer of queue pair `index` is gone; whether that ended an attempt.
    pub(crate) fn attempt_failed(&mut self, index: u32) -> bool {
        let Some(position) = self.unanswered(index) else { return false };
        let id = self.attempts.swap_remove(position).id;
        self.remove(index);
        self.answer(ConnectEvent::Failed { id });
        true
    }

    /// Lets peers of this group's connections address `length` bytes from `offset` of `segment`, which
    /// must have a descriptor when a peer is another process.
    ///
    /// # Errors
    /// The range is not inside, a limit (keys, segments) is reached, or the memory cannot be shown to
    /// a peer that is another process.
    pub fn register_remote(
        &mut self,
        segment: &Segment,
        offset: u64,
        length: u64,
        access: RemoteAccess,
    ) -> io::Result<RemoteKey> {
        if segment.fd().is_none() && self.has_sockets() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "memory without a descriptor cannot be shown to another process",
            ));
        }
        let (number, new) = self.keys.segment_index(segment)?;
        if new {
            // Before the key is given away, so that whoever sees the key can find the segment.
            for index in self.indexes() {
                let message = Message::Memory { index: number, segment: segment.clone() };
                if let Some(way) = self.queue_pair(index).and_then(|qp| qp.way.as_mut()) {
                    // Who is gone needs no news.
                    let _ = way.send(message);
                }
            }
        }
        self.keys.publish(&self.own, number, offset, length, access)
    }

    /// Takes a remote key back: peers' later operations on it fail with `RemoteAccess`. Whether it
    /// was valid.
    pub fn invalidate(&mut self, rkey: u32) -> bool {
        self.keys.invalidate(&self.own, rkey)
    }
}
