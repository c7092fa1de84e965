//! What only the initiator's end has: asking for connections and exposing memory.

use lunar_platform::{PrivateData, QpHandle};

/// Names one connection attempt of one group; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectId(pub u64);

/// How a connection attempt ended.
#[derive(Clone, Copy, Debug)]
pub enum ConnectEvent {
    /// REP arrived and RTU was sent: `qp` is live.
    Accepted {
        /// The attempt.
        id: ConnectId,
        /// The connected queue pair.
        qp: QpHandle,
        /// The REP's private data.
        private_data: PrivateData,
    },
    /// REJ arrived.
    Rejected {
        /// The attempt.
        id: ConnectId,
        /// The REJ's private data; empty when the passive end just dropped the request.
        private_data: PrivateData,
    },
    /// Nobody offers the service, the port is down, or the passive end went away.
    Failed {
        /// The attempt.
        id: ConnectId,
    },
}
