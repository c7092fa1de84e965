//! Who was refused at the control channel, and why: logged, counted, and told by the API.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tracing::warn;

/// How often the same reason is logged: a card that is refused comes back again and again.
const REPEAT: Duration = Duration::from_secs(60);

/// How many reasons are remembered for that.
const REASONS_MAX: usize = 16;

/// Shared by those who accept and those who tell.
#[derive(Default)]
pub(crate) struct Refusals(Mutex<State>);

#[derive(Default)]
struct State {
    count: u64,
    last: String,
    /// What was logged lately, and when, the oldest first.
    logged: VecDeque<(String, Instant)>,
}

impl Refusals {
    /// Takes down that the card at `place` was refused for `reason`.
    pub(crate) fn note(&self, place: &str, reason: &str) {
        let mut state = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        state.count = state.count.saturating_add(1);
        state.last = format!("the card at {place} was refused: {reason}");
        state.logged.retain(|(_, at)| at.elapsed() < REPEAT);
        if state.logged.iter().any(|(logged, _)| logged == reason) {
            return;
        }
        if state.logged.len() >= REASONS_MAX {
            state.logged.pop_front();
        }
        state.logged.push_back((reason.to_owned(), Instant::now()));
        warn!(refused = state.count, "{}", state.last);
    }

    /// How many were refused, and the last of them in words.
    pub(crate) fn told(&self) -> (u64, String) {
        let state = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        (state.count, state.last.clone())
    }
}
