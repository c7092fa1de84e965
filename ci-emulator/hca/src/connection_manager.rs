//! Connection manager messages (IBTA 12) and the two ways they travel: through a mailbox in one
//! process, or over a Unix socket (`unix`). Private data and endpoint descriptions only; the queue
//! pairs' states are `queue_pair`'s business.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lunar_pcie::{HintLine, Segment};
use lunar_platform::PrivateData;

use crate::shared::PeerGroup;
use crate::unix::UnixEnd;

/// One connection manager message.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    /// REQ: who asks, and everything the other end needs to reach it.
    Request {
        endpoint: PeerGroup,
        queue_pair: Segment,
        ring_bytes: u32,
        peer: String,
        private_data: PrivateData,
    },
    /// REP.
    Reply { endpoint: PeerGroup, private_data: PrivateData },
    /// RTU.
    ReadyToUse,
    /// REJ, consumer defined.
    Reject { private_data: PrivateData },
    /// DREQ.
    Disconnect,
    /// The sender registered its `index`th segment: rkeys may lead into it from now on.
    Memory { index: u32, segment: Segment },
}

/// What receiving gives.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // lives on the stack, for a moment
pub(crate) enum Received {
    Message(Message),
    /// Nothing now.
    Nothing,
    /// The other end is gone, and every message it sent was received.
    Gone,
}

/// The other end is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gone;

/// One end's way to the other end's connection manager.
#[derive(Debug)]
pub(crate) enum Way {
    Local(LocalEnd),
    Unix(UnixEnd),
}

impl Way {
    pub(crate) fn send(&mut self, message: Message) -> Result<(), Gone> {
        match self {
            Self::Local(end) => end.send(message),
            Self::Unix(end) => end.send(&message),
        }
    }

    pub(crate) fn receive(&mut self) -> Received {
        match self {
            Self::Local(end) => end.receive(),
            Self::Unix(end) => end.receive(),
        }
    }
}

/// A queue with a wake-up line for whoever waits on it.
#[derive(Debug)]
pub(crate) struct Inbox<T> {
    waiting: Mutex<VecDeque<T>>,
    /// Something may be waiting: lets the poller skip the lock.
    pub(crate) mail: AtomicBool,
    closed: AtomicBool,
    pub(crate) wake: Option<HintLine>,
}

impl<T> Inbox<T> {
    pub(crate) fn new(wake: Option<HintLine>) -> Self {
        Self {
            waiting: Mutex::default(),
            mail: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            wake,
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts `item` in and wakes the reader.
    pub(crate) fn push(&self, item: T) -> Result<(), Gone> {
        {
            let mut waiting = self.lock();
            if self.closed.load(Ordering::Relaxed) {
                return Err(Gone);
            }
            waiting.push_back(item);
            self.mail.store(true, Ordering::Release);
        }
        if let Some(wake) = &self.wake {
            wake.signal();
        }
        Ok(())
    }

    /// The oldest item.
    pub(crate) fn pop(&self) -> Option<T> {
        if !self.mail.load(Ordering::Acquire) {
            return None;
        }
        let mut waiting = self.lock();
        let item = waiting.pop_front();
        self.mail.store(!waiting.is_empty(), Ordering::Release);
        item
    }

    /// Refuses further items, and gives those that wait.
    pub(crate) fn close(&self) -> VecDeque<T> {
        let mut waiting = self.lock();
        self.closed.store(true, Ordering::Relaxed);
        self.mail.store(false, Ordering::Release);
        std::mem::take(&mut *waiting)
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }
}

/// One end of an in-process way. Dropping it is how an end vanishes.
#[derive(Debug)]
pub(crate) struct LocalEnd {
    inbound: Arc<Inbox<Message>>,
    outbound: Arc<Inbox<Message>>,
}

impl LocalEnd {
    /// Both ends of a new way.
    pub(crate) fn pair() -> (Self, Self) {
        let (there, back) = (Arc::new(Inbox::new(None)), Arc::new(Inbox::new(None)));
        let first = Self { inbound: Arc::clone(&back), outbound: Arc::clone(&there) };
        (first, Self { inbound: there, outbound: back })
    }

    fn send(&self, message: Message) -> Result<(), Gone> {
        self.outbound.push(message)
    }

    fn receive(&self) -> Received {
        // Looked at before the mail: what was sent before closing is still received.
        let gone = self.outbound.is_closed();
        match self.inbound.pop() {
            Some(message) => Received::Message(message),
            None if gone => Received::Gone,
            None => Received::Nothing,
        }
    }
}

impl Drop for LocalEnd {
    fn drop(&mut self) {
        self.inbound.close();
    }
}
