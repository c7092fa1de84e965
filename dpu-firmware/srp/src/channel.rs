//! The life of a channel and its credits, as the target sees them.
//!
//! Only states and counts; who closes a queue pair or sends a response is the caller's business.

/// States of a channel, each told in terms of its queue pair. They only move forward.
///
/// ```text
/// Connecting --Established--> Live --Close/QpFailed--> Disconnecting --Disconnected--> Draining --Drained--> Disconnected
///      |                       |                                           ^                                     ^
///      +--- Close/QpFailed: Disconnecting, Disconnected: Draining ---------+            DeviceLost, from any ----+
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChannelState {
    /// The queue pair is ready to receive and REP was sent; RTU did not arrive. Commands that arrive
    /// now wait.
    Connecting,
    /// The queue pair is ready to send: commands run, responses go out.
    Live,
    /// The target wants the channel gone: the disconnect was asked for, new commands are dropped.
    Disconnecting,
    /// The queue pair is in the error state; posted work requests come back flushed.
    Draining,
    /// Every work request came back. The queue pair may be destroyed.
    Disconnected,
}

/// What may happen to a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelEvent {
    /// RTU, or the first message that implies it.
    Established,
    /// The target closes: I_LOGOUT, a SINGLE re-login, a protocol violation, a disabled port.
    Close,
    /// The queue pair failed on its own; the connection is still to be closed.
    QpFailed,
    /// The connection is down, by either side.
    Disconnected,
    /// The last work request came back.
    Drained,
    /// The device is gone and with it every queue pair.
    DeviceLost,
}

impl ChannelState {
    /// All states, in order.
    pub const ALL: [Self; 5] =
        [Self::Connecting, Self::Live, Self::Disconnecting, Self::Draining, Self::Disconnected];

    /// The state after `event`. Events that come late or twice change nothing.
    #[inline]
    #[must_use]
    pub fn on(self, event: ChannelEvent) -> Self {
        let next = match event {
            ChannelEvent::Established => Self::Live,
            ChannelEvent::Close | ChannelEvent::QpFailed => Self::Disconnecting,
            ChannelEvent::Disconnected => Self::Draining,
            ChannelEvent::Drained | ChannelEvent::DeviceLost => Self::Disconnected,
        };
        self.max(next)
    }

    /// Whether the peer may still be sent something.
    #[inline]
    #[must_use]
    pub fn is_live(self) -> bool {
        self == Self::Live
    }
}

impl ChannelEvent {
    /// All events.
    pub const ALL: [Self; 6] = [
        Self::Established,
        Self::Close,
        Self::QpFailed,
        Self::Disconnected,
        Self::Drained,
        Self::DeviceLost,
    ];
}

/// The initiator sent a request without credit (SRP 5.4): a protocol violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overrun {
    /// The request limit of this channel.
    pub limit: u32,
}

impl core::fmt::Display for Overrun {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "the initiator sent a request while all {} credits of its channel were used",
            self.limit
        )
    }
}

impl core::error::Error for Overrun {}

/// The target's account of one channel's request limit (SRP 5.4).
///
/// `available + held == limit` always: a credit is either with the initiator, or held by a request
/// that the target has. Of the held ones, `debt` belong to requests that are over but got no
/// response of their own (aborted tasks); they go back with the next response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    limit: u32,
    available: u32,
    debt: u32,
}

impl Credit {
    /// An account after a login response granted `initial` requests; capped at `i32::MAX`, the most
    /// the wire can say.
    #[must_use]
    pub fn new(initial: u32) -> Self {
        let limit = initial.min(i32::MAX as u32);
        Self { limit, available: limit, debt: 0 }
    }

    /// An SRP_CMD or SRP_TSK_MGMT arrived. (SRP_I_LOGOUT, SRP_CRED_RSP and SRP_AER_RSP are free.)
    ///
    /// # Errors
    /// [`Overrun`] when the initiator had no credit; nothing was taken.
    #[inline]
    pub fn take(&mut self) -> Result<(), Overrun> {
        match self.available.checked_sub(1) {
            Some(available) => {
                self.available = available;
                Ok(())
            }
            None => Err(Overrun { limit: self.limit }),
        }
    }

    /// A request ended without a response of its own: its credit is owed.
    #[inline]
    pub fn owe(&mut self) {
        self.debt = self.debt.saturating_add(1).min(self.held());
    }

    /// The request limit delta of a response that is being made: the credit of its own request and
    /// all that is owed. They are the initiator's from now on.
    #[inline]
    pub fn response_delta(&mut self) -> i32 {
        // Nearly always one credit and no debt: `give_back` says the same, at greater length.
        if self.debt == 0 && self.available < self.limit {
            self.available = self.available.saturating_add(1);
            return 1;
        }
        self.give_back(self.debt.saturating_add(1))
    }

    /// What an SRP_CRED_REQ should give back when nothing else is outstanding that could carry the
    /// debt; `None` when a response will, or nothing is owed.
    pub fn credit_request_delta(&mut self) -> Option<i32> {
        (self.debt > 0 && self.debt == self.held()).then(|| self.give_back(self.debt))
    }

    /// Requests the initiator may still send.
    #[inline]
    #[must_use]
    pub fn available(&self) -> u32 {
        self.available
    }

    /// Credits of requests that ended silently and were not given back yet.
    #[must_use]
    pub fn debt(&self) -> u32 {
        self.debt
    }

    /// The request limit.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.limit
    }

    #[inline]
    fn held(&self) -> u32 {
        self.limit.saturating_sub(self.available)
    }

    #[cold]
    fn give_back(&mut self, wanted: u32) -> i32 {
        let given = wanted.min(self.held());
        self.debt = 0;
        self.available = self.available.saturating_add(given);
        // `given <= limit <= i32::MAX`
        i32::try_from(given).unwrap_or(i32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn channel_states_whole_matrix() {
        use ChannelState::{Disconnected, Disconnecting, Draining, Live};
        // Rows: states in order. Columns: events in order of `ChannelEvent::ALL`.
        let matrix = [
            [Live, Disconnecting, Disconnecting, Draining, Disconnected, Disconnected],
            [Live, Disconnecting, Disconnecting, Draining, Disconnected, Disconnected],
            [Disconnecting, Disconnecting, Disconnecting, Draining, Disconnected, Disconnected],
            [Draining, Draining, Draining, Draining, Disconnected, Disconnected],
            [Disconnected; 6],
        ];
        for (state, row) in ChannelState::ALL.into_iter().zip(matrix) {
            for (event, next) in ChannelEvent::ALL.into_iter().zip(row) {
                assert_eq!(state.on(event), next, "{state:?} on {event:?}");
                assert!(next >= state, "states only move forward");
            }
        }
    }

    #[test]
    fn request_without_credit_is_an_overrun_and_takes_nothing() {
        let mut credit = Credit::new(1);
        assert_eq!(credit.take(), Ok(()));
        assert_eq!(credit.take(), Err(Overrun { limit: 1 }));
        assert_eq!(credit.response_delta(), 1);
        assert_eq!(credit.available(), 1);
    }

    #[test]
    fn silent_ends_are_repaid_by_the_next_response() {
        let mut credit = Credit::new(8);
        for _ in 0..4 {
            credit.take().unwrap();
        }
        credit.owe();
        credit.owe();
        assert_eq!(credit.response_delta(), 3);
        assert_eq!(credit.available(), 7);
        assert_eq!(credit.response_delta(), 1);
    }

    #[test]
    fn debt_goes_in_a_credit_request_only_when_no_response_will_come() {
        let mut credit = Credit::new(4);
        credit.take().unwrap();
        credit.take().unwrap();
        credit.owe();
        assert_eq!(credit.credit_request_delta(), None, "a response is still to come");
        credit.owe();
        assert_eq!(credit.credit_request_delta(), Some(2));
        assert_eq!(credit.available(), 4);
    }

    proptest! {
        /// The initiator's own sum never exceeds the limit, and after all requests ended and one
        /// more response or credit request went out nothing is lost.
        #[test]
        fn credits_are_conserved(limit in 1_u32..64, steps in proptest::collection::vec(0_u8..4, 0..400)) {
            let mut credit = Credit::new(limit);
            let mut initiator = i64::from(limit);
            let mut running = 0_u32;
            for step in steps {
                match step {
                    0 | 1 => {
                        let taken = credit.take();
                        prop_assert_eq!(taken.is_ok(), initiator > 0);
                        if taken.is_ok() {
                            initiator -= 1;
                            running += 1;
                        }
                    }
                    2 if running > 0 => {
                        running -= 1;
                        initiator += i64::from(credit.response_delta());
                    }
                    3 if running > 0 => {
                        running -= 1;
                        credit.owe();
                        initiator += i64::from(credit.credit_request_delta().unwrap_or(0));
                    }
                    _ => {}
                }
                prop_assert_eq!(initiator, i64::from(credit.available()));
                prop_assert_eq!(initiator + i64::from(running + credit.debt()), i64::from(limit));
            }
            for _ in 0..running {
                initiator += i64::from(credit.response_delta());
            }
            prop_assert_eq!(initiator, i64::from(limit));
        }
    }
}
