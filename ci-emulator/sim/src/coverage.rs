//! Which disturbance met a task in which state. Every pair that can happen must have happened in a
//! whole run of seeds.

use std::fmt;

use lunar_target::State;
use lunar_target::trace::Point;

/// What can happen to a task from outside.
pub const CAUSES: [&str; 5] = ["abort", "channel death", "gate", "ring loss", "revoke"];

/// The states, in the order of the table.
pub const STATES: [State; 10] = [
    State::Blocked,
    State::NeedBuffer,
    State::NeedReadRoom,
    State::Fetching,
    State::NeedBackend,
    State::AtBackend,
    State::NeedSendRoom,
    State::Sending,
    State::Aborting,
    State::Managing,
];

/// Pairs that cannot happen, with the reason.
pub const UNREACHABLE: [(usize, State, &str); 1] = [(
    0,
    State::Managing,
    "no task management function aborts another one (SAM-6 7.1): it ends by itself or with its channel",
)];

/// How often each pair happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    hits: [[u64; STATES.len()]; CAUSES.len()],
}

impl Coverage {
    /// Takes a trace point.
    pub fn add(&mut self, point: Point) {
        let (cause, state) = match point {
            Point::Aborted(state) => (0, state),
            Point::ChannelLost(state) => (1, state),
            Point::Gated(state) => (2, state),
            Point::RingLost(state) => (3, state),
            Point::Revoked(state) => (4, state),
            _ => return,
        };
        if let Some(place) = STATES.iter().position(|known| *known == state) {
            self.hits[cause][place] += 1;
        }
    }

    /// Adds another run's.
    pub fn merge(&mut self, other: &Self) {
        for (row, others) in self.hits.iter_mut().zip(&other.hits) {
            for (hit, more) in row.iter_mut().zip(others) {
                *hit += more;
            }
        }
    }

    /// Pairs that can happen and did not.
    #[must_use]
    pub fn missed(&self) -> Vec<(&'static str, State)> {
        let mut missed = Vec::new();
        for (cause, row) in self.hits.iter().enumerate() {
            for (place, hit) in row.iter().enumerate() {
                if *hit == 0 && reason(cause, STATES[place]).is_none() {
                    missed.push((CAUSES[cause], STATES[place]));
                }
            }
        }
        missed
    }

    /// Pairs that were said to be impossible and happened: the reasons are wrong.
    #[must_use]
    pub fn impossible(&self) -> Vec<(&'static str, State)> {
        let mut found = Vec::new();
        for (cause, state, _) in UNREACHABLE {
            let place = STATES.iter().position(|known| *known == state);
            if place.is_some_and(|place| self.hits[cause][place] != 0) {
                found.push((CAUSES[cause], state));
            }
        }
        found
    }
}

fn reason(cause: usize, state: State) -> Option<&'static str> {
    UNREACHABLE
        .iter()
        .find(|(of, in_state, _)| (*of, *in_state) == (cause, state))
        .map(|(_, _, reason)| *reason)
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<14}", "")?;
        for cause in CAUSES {
            write!(f, "{cause:>15}")?;
        }
        writeln!(f)?;
        for (place, state) in STATES.into_iter().enumerate() {
            write!(f, "{:<14}", format!("{state:?}"))?;
            for (cause, row) in self.hits.iter().enumerate() {
                match reason(cause, state) {
                    Some(_) if row[place] == 0 => write!(f, "{:>15}", "-")?,
                    _ => write!(f, "{:>15}", row[place])?,
                }
            }
            writeln!(f)?;
        }
        for (cause, state, reason) in UNREACHABLE {
            writeln!(f, "- {} in {state:?}: {reason}", CAUSES[cause])?;
        }
        Ok(())
    }
}
