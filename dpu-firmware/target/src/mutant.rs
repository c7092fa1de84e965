//! Deliberate mistakes that the simulator must catch (DESIGN section 7). Without the feature
//! `mutants` every question here is the constant `false` and nothing of it is in the binary.

/// One mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mutant {
    /// None: the code as it ships.
    None = 0,
    /// Access is not checked again when a task is handed to the backend.
    NoRecheckAtSubmit,
    /// A task management function answers before the tasks it aborted are over.
    GoodBeforeDrain,
    /// Data-out in host memory is published without the flush that makes it visible.
    NoFlush,
    /// Unit attentions are established some time after a gate has opened instead of before the function answers.
    UnitAttentionAfterGood,
    /// An aborted task goes on to the backend when its data-out has arrived.
    LateWriteAfterAbort,
    /// With TST = 0 each nexus has a task set of its own all the same.
    TaskSetsApart,
    /// A SINGLE re-login is answered while tasks of the old channels are still in progress.
    LoginBeforeDrain,
    /// A change that keeps nexuses out waits for the operations of the first channel alone.
    DrainOfOneChannel,
}

#[cfg(feature = "mutants")]
mod switch {
    use super::Mutant;
    use core::cell::Cell;

    thread_local! {
        static CHOSEN: Cell<Mutant> = const { Cell::new(Mutant::None) };
    }

    /// Chooses the mistake that this thread's poll groups make.
    pub fn choose(mutant: Mutant) {
        CHOSEN.with(|chosen| chosen.set(mutant));
    }

    pub(crate) fn is(mutant: Mutant) -> bool {
        CHOSEN.with(|chosen| chosen.get() == mutant)
    }
}

#[cfg(feature = "mutants")]
pub use switch::choose;
#[cfg(feature = "mutants")]
pub(crate) use switch::is;

#[cfg(not(feature = "mutants"))]
#[inline]
pub(crate) const fn is(_: Mutant) -> bool {
    false
}
