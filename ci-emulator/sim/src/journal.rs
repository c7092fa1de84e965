//! What happened in a run: every event goes into the hash that tells whether two runs were the same,
//! and the last ones are kept for the report of a failure.

use std::collections::VecDeque;
use std::fmt;

/// Events kept for a report.
const KEPT: usize = 400;

/// One event: what, and up to three numbers that say which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Virtual time in nanoseconds.
    pub at: u64,
    /// The kind of event, with the meaning of the numbers.
    pub what: &'static str,
    /// The numbers.
    pub numbers: [u64; 3],
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c] = self.numbers;
        write!(f, "{:>13} ns  {:<44} {a:>6} {b:>18x} {c:>6}", self.at, self.what)
    }
}

/// The record of one run.
#[derive(Debug)]
pub struct Journal {
    now: u64,
    hash: u64,
    count: u64,
    last: VecDeque<Entry>,
    print: bool,
}

impl Journal {
    /// An empty record; with `print` every event goes to standard output too.
    #[must_use]
    pub fn new(print: bool) -> Self {
        Self {
            now: 0,
            hash: 0xcbf2_9ce4_8422_2325,
            count: 0,
            last: VecDeque::with_capacity(KEPT),
            print,
        }
    }

    /// Virtual time of the events to come.
    pub fn set_time(&mut self, now: u64) {
        self.now = now;
    }

    /// Records an event that concerns the hash alone: there are too many of its kind to keep.
    pub fn count(&mut self, what: &'static str, numbers: [u64; 3]) {
        self.count += 1;
        self.mix(what.len() as u64);
        self.mix(u64::from(*what.as_bytes().last().unwrap_or(&0)));
        self.mix(self.now);
        for number in numbers {
            self.mix(number);
        }
    }

    /// Records an event.
    pub fn note(&mut self, what: &'static str, numbers: [u64; 3]) {
        self.count(what, numbers);
        let entry = Entry { at: self.now, what, numbers };
        if self.print {
            println!("{entry}");
        }
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(entry);
    }

    fn mix(&mut self, word: u64) {
        // FNV-1a by words, with a shift that brings the high bits down.
        self.hash = (self.hash ^ word).wrapping_mul(0x0000_0100_0000_01b3);
        self.hash ^= self.hash >> 29;
    }

    /// The hash of everything so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Events so far.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.count
    }

    /// The last events, oldest first.
    pub fn last(&self) -> impl Iterator<Item = &Entry> {
        self.last.iter()
    }
}
