//! What the engine's thread is told, and how: a bounded channel, and an eventfd that wakes it when it sleeps.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::time::Duration;

use lunar_offload_proto::control::{ToCard, ToHost};
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::oneshot;

use crate::api::wire;

/// Messages under way to the engine. A card that floods the control channel fills it, and is then read more slowly.
const LINE_MAX: usize = 256;

/// Something for the engine.
pub(crate) enum ToEngine {
    /// A card connected; `connection` names the connection.
    CardConnected { connection: u64 },
    /// It sent a message.
    FromCard(Box<ToHost>),
    /// The connection is over.
    CardLost { connection: u64, reason: String },
    /// The keeper exports its memory anew: the card must be told.
    Exported(Box<lunar_keeper::Offer>),
    /// Somebody asks.
    Ask(Question),
    /// Finish what is under way, and end.
    Stop,
}

/// A question of the API.
pub(crate) enum Question {
    Health(oneshot::Sender<wire::HealthReply>),
    Show(oneshot::Sender<Box<wire::ShowReply>>),
    /// The device's name; the answer may be why not, in words.
    ResyncSize(String, oneshot::Sender<Result<wire::ResyncSizeReply, String>>),
    /// The answer may be why not, in words.
    ChangeMedium(
        wire::ChangeMediumRequest,
        oneshot::Sender<Result<wire::ChangeMediumReply, String>>,
    ),
    Alua(oneshot::Sender<wire::AluaReply>),
    /// The answer may be why not, in words.
    SetAlua(wire::SetAluaRequest, oneshot::Sender<Result<wire::SetAluaReply, String>>),
    /// The device's name; the answer may be why not, in words.
    Reservations(String, oneshot::Sender<Result<wire::ReservationsReply, String>>),
    /// The answer may be why not, in words.
    ChangeReservations(
        wire::ChangeReservationsRequest,
        oneshot::Sender<Result<wire::ReservationsReply, String>>,
    ),
}

/// Something from the engine for the control channel.
pub(crate) enum ToControl {
    /// Send it, if this connection is still there.
    Send { connection: u64, message: Box<ToCard> },
    /// Close it after what was sent.
    Close { connection: u64, reason: String },
}

/// The engine has ended.
#[derive(Debug)]
pub(crate) struct EngineGone;

/// The sending end; clones share it.
#[derive(Clone)]
pub(crate) struct EngineLine {
    sender: SyncSender<ToEngine>,
    wake: Arc<OwnedFd>,
}

impl EngineLine {
    /// Sends, waiting while the line is full.
    pub(crate) async fn send(&self, message: ToEngine) -> Result<(), EngineGone> {
        let mut message = message;
        loop {
            match self.sender.try_send(message) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) => message = back,
                Err(TrySendError::Disconnected(_)) => return Err(EngineGone),
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // A full counter means that the engine is awake already.
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
        Ok(())
    }
}

/// The engine's end.
pub(crate) struct EngineInbox {
    receiver: Receiver<ToEngine>,
    wake: Arc<OwnedFd>,
}

impl EngineInbox {
    /// The next message; `None` when there is none now. When all senders are gone there is nobody left to serve: that
    /// is a stop.
    pub(crate) fn next(&self) -> Option<ToEngine> {
        match self.receiver.try_recv() {
            Ok(message) => Some(message),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(ToEngine::Stop),
        }
    }

    /// Whoever writes to it wakes the engine.
    pub(crate) fn wake(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.wake)
    }

    /// Readable when there may be a message.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// A new line.
pub(crate) fn line() -> std::io::Result<(EngineLine, EngineInbox)> {
    let (sender, receiver) = sync_channel(LINE_MAX);
    let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    Ok((EngineLine { sender, wake: wake.clone() }, EngineInbox { receiver, wake }))
}
