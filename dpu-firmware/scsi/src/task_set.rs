//! Which task may be enabled (SAM-6 clause 8). Counts only: the tasks, and the FIFO of the dormant ones,
//! are the caller's. With TST = 1 there is one [`TaskSet`] per I_T nexus and logical unit.

/// Task attribute of a command (SAM-6 8.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TaskAttribute {
    /// SIMPLE (SAM-6 8.6.2).
    Simple,
    /// HEAD OF QUEUE (SAM-6 8.6.4).
    HeadOfQueue,
    /// ORDERED (SAM-6 8.6.3).
    Ordered,
    /// ACA (SAM-6 8.6.5). No ACA condition is ever established here (NACA is refused), so it is treated
    /// as HEAD OF QUEUE.
    Aca,
}

/// A task management function that an initiator asks for (SAM-6 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TaskManagementFunction {
    /// ABORT TASK (SAM-6 7.2).
    AbortTask,
    /// ABORT TASK SET (SAM-6 7.3).
    AbortTaskSet,
    /// CLEAR TASK SET (SAM-6 7.5).
    ClearTaskSet,
    /// LOGICAL UNIT RESET (SAM-6 7.7).
    LogicalUnitReset,
    /// CLEAR ACA (SAM-6 7.4).
    ClearAca,
}

/// The counts of one task set. A task is admitted once, then either ends (if enabled), or wakes and later
/// ends, or is withdrawn; a call out of that order leaves the counts at zero rather than below.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskSet {
    simple: u32,
    ordered: u32,
    head_of_queue: u32,
    dormant: u32,
}

impl TaskSet {
    /// A new task with this attribute. True: it is enabled now. False: it is dormant; the caller appends it
    /// to its FIFO.
    ///
    /// HEAD OF QUEUE is enabled at once; everything else waits behind every dormant task. That loses no
    /// concurrency: what keeps the oldest dormant task waiting, an older ORDERED or a HEAD OF QUEUE, keeps a
    /// newer SIMPLE waiting as well, and a dormant ORDERED does so by itself.
    #[inline]
    pub fn admit(&mut self, attribute: TaskAttribute) -> bool {
        let enabled = matches!(attribute, TaskAttribute::HeadOfQueue | TaskAttribute::Aca)
            || (self.dormant == 0 && self.allows(attribute));
        let count = if enabled { self.count(attribute) } else { &mut self.dormant };
        *count = count.saturating_add(1);
        enabled
    }

    /// An enabled task with this attribute ended. The caller then tries [`TaskSet::wake`] for the head of
    /// its FIFO until that says no.
    #[inline]
    pub fn ended(&mut self, attribute: TaskAttribute) {
        let count = self.count(attribute);
        *count = count.saturating_sub(1);
    }

    /// May the dormant task at the FIFO's head, with this attribute, be enabled now? If so it counts as
    /// enabled and the caller takes it off the FIFO. False too where no task is dormant.
    #[inline]
    pub fn wake(&mut self, attribute: TaskAttribute) -> bool {
        if self.dormant == 0 || !self.allows(attribute) {
            return false;
        }
        self.dormant = self.dormant.saturating_sub(1);
        let count = self.count(attribute);
        *count = count.saturating_add(1);
        true
    }

    /// A dormant task left the FIFO, from anywhere in it, without having been enabled (aborted). The head
    /// of the FIFO may be able to wake afterwards.
    pub fn withdrawn(&mut self, _attribute: TaskAttribute) {
        self.dormant = self.dormant.saturating_sub(1);
    }

    /// Dormant tasks.
    #[must_use]
    pub fn dormant(&self) -> u32 {
        self.dormant
    }

    /// Enabled tasks.
    #[must_use]
    pub fn enabled(&self) -> u32 {
        self.simple.saturating_add(self.ordered).saturating_add(self.head_of_queue)
    }

    /// Do the enabled tasks allow another with this attribute? SAM-6 8.6.2: SIMPLE waits for every HEAD OF
    /// QUEUE and every older ORDERED; 8.6.3: ORDERED waits for every HEAD OF QUEUE and everything older. An
    /// enabled task other than HEAD OF QUEUE is older than any dormant one.
    #[inline]
    fn allows(&self, attribute: TaskAttribute) -> bool {
        match attribute {
            TaskAttribute::Simple => self.ordered | self.head_of_queue == 0,
            TaskAttribute::Ordered => self.simple | self.ordered | self.head_of_queue == 0,
            TaskAttribute::HeadOfQueue | TaskAttribute::Aca => true,
        }
    }

    #[inline]
    fn count(&mut self, attribute: TaskAttribute) -> &mut u32 {
        match attribute {
            TaskAttribute::Simple => &mut self.simple,
            TaskAttribute::Ordered => &mut self.ordered,
            TaskAttribute::HeadOfQueue | TaskAttribute::Aca => &mut self.head_of_queue,
        }
    }
}
