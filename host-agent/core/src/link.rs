//! The control channel's life, seen from the agent. Which message may come in which state, and when
//! the card is taken for gone, is decided here; what messages mean is decided in `core`.

use lunar_offload_proto::control::Agreed;

use crate::config::Limits;

/// Where the control channel is. It only moves down this list, and back to `Down`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkState {
    /// There is none.
    Down,
    /// Hello was sent.
    HelloSent,
    /// The card started anew, and operations of its older epoch have not ended.
    HoldingBack,
    /// RingSetup was sent.
    RingsOffered,
    /// The card cannot use the rings; everything else goes on.
    RingsRefused,
    /// The card uses the rings.
    Ready,
    /// Goodbye or nothing was said; the shell closes it.
    Closing,
}

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) state: LinkState,
    /// With the card that was met last: its rings go on without a channel.
    pub(crate) agreed: Option<Agreed>,
    /// Epoch of the card at the other end, from its Hello.
    pub(crate) card_epoch: Option<u64>,
    /// Since when it is in `HoldingBack`.
    pub(crate) holding_since_ns: u64,
    heard_ns: u64,
    heartbeat_due_ns: u64,
    heartbeats: u64,
}

impl Link {
    pub(crate) fn new() -> Self {
        Self {
            state: LinkState::Down,
            agreed: None,
            card_epoch: None,
            holding_since_ns: 0,
            heard_ns: 0,
            heartbeat_due_ns: 0,
            heartbeats: 0,
        }
    }

    pub(crate) fn connected(&mut self, limits: &Limits, now_ns: u64) {
        *self = Self {
            state: LinkState::HelloSent,
            agreed: self.agreed,
            heard_ns: now_ns,
            heartbeat_due_ns: now_ns.saturating_add(limits.heartbeat_ns),
            ..Self::new()
        };
    }

    pub(crate) fn heard(&mut self, now_ns: u64) {
        self.heard_ns = self.heard_ns.max(now_ns);
    }

    /// Whether messages can be exchanged.
    pub(crate) fn is_up(&self) -> bool {
        !matches!(self.state, LinkState::Down | LinkState::Closing)
    }

    /// Whether the card's Hello was accepted.
    pub(crate) fn is_met(&self) -> bool {
        self.is_up() && self.state != LinkState::HelloSent
    }

    /// Whether nothing came for too long.
    pub(crate) fn is_silent(&self, limits: &Limits, now_ns: u64) -> bool {
        self.is_up() && now_ns.saturating_sub(self.heard_ns) >= limits.silence_ns
    }

    /// The count of the heartbeat that is due, if one is.
    pub(crate) fn heartbeat(&mut self, limits: &Limits, now_ns: u64) -> Option<u64> {
        if !self.is_met() || now_ns < self.heartbeat_due_ns {
            return None;
        }
        self.heartbeat_due_ns = now_ns.saturating_add(limits.heartbeat_ns);
        self.heartbeats = self.heartbeats.saturating_add(1);
        Some(self.heartbeats)
    }

    /// When [`Self::heartbeat`] or [`Self::is_silent`] next have something to say.
    pub(crate) fn deadline(&self, limits: &Limits) -> Option<u64> {
        if !self.is_up() {
            return None;
        }
        let silence = self.heard_ns.saturating_add(limits.silence_ns);
        Some(if self.is_met() { silence.min(self.heartbeat_due_ns) } else { silence })
    }
}
