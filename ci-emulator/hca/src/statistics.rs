//! Counters of one poll group's emulated HCA. Plain data; no behaviour.

/// What one [`crate::EmulatedHca`] has done since it was made. All counts, never reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Calls of `poll`.
    pub polls: u64,
    /// Calls of `ring` that found posted work: doorbells as hardware would see them.
    pub doorbells: u64,
    /// Send-queue work requests taken by `post_send`.
    pub send_requests: u64,
    /// Receive work requests taken by `post_receive`.
    pub receive_requests: u64,
    /// SENDs put on the wire.
    pub sends: u64,
    /// Messages received into a buffer.
    pub receives: u64,
    /// RDMA WRITEs executed.
    pub rdma_writes: u64,
    /// RDMA READs executed.
    pub rdma_reads: u64,
    /// Bytes of executed SENDs.
    pub send_bytes: u64,
    /// Bytes of executed RDMA WRITEs.
    pub rdma_write_bytes: u64,
    /// Bytes of executed RDMA READs.
    pub rdma_read_bytes: u64,
    /// Completions reported by `poll`, of any status.
    pub completions: u64,
    /// Completions reported with `Flushed`.
    pub flushes: u64,
    /// RNR NAKs sent: polls at which a message waited and the SRQ was empty.
    pub receiver_not_ready: u64,
    /// Work requests that failed a local key, range or revoked-memory check.
    pub local_protection_errors: u64,
    /// Work requests that failed the peer's rkey, range or access check.
    pub remote_access_errors: u64,
    /// Posts refused with `PostError::Full`.
    pub posts_full: u64,
    /// Times work had to wait because the limit on outstanding RDMA READs was reached.
    pub read_limit_waits: u64,
    /// Connections ended because the peer's shared words made no sense.
    pub peer_lies: u64,
    /// Wake-ups sent to a sleeping peer (an eventfd write each).
    pub wake_ups: u64,
    /// Posts that made possible completions (send-queue entries and posted receives) exceed the CQ's
    /// depth: on hardware a CQ overrun could follow.
    pub completion_queue_overcommits: u64,
    /// Uses of a handle of an earlier life of its index.
    pub stale_handles: u64,
}
