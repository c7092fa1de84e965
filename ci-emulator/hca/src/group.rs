//! One poll group's share of the emulated HCA. (Interim: the types; behaviour follows.)
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use lunar_pcie::{AddressSpace, Segment};
use lunar_platform::{
    CmError, CmEvent, Hca, HcaAttributes, Nanoseconds, PostError, QpHandle, QpParameters,
    ReceiveRequest, SendRequest, WorkCompletion,
};

use crate::device::EmulatedDevice;
use crate::fabric::Fabric;
use crate::initiator_side::{ConnectEvent, ConnectId};
use crate::listener::EmulatedConnection;
use crate::remote_keys::{RemoteAccess, RemoteKey, RemoteKeys};
use crate::shared::{GroupLayout, OwnGroup};
use crate::statistics::Statistics;

/// One poll group's share of a device: one CQ, one SRQ, its queue pairs. Either end of a connection.
#[derive(Debug)]
pub struct EmulatedHca {
    device: EmulatedDevice,
    attributes: HcaAttributes,
    space: AddressSpace,
    own: Arc<OwnGroup>,
    keys: RemoteKeys,
    statistics: Statistics,
}

impl EmulatedHca {
    pub(crate) fn new(
        device: &EmulatedDevice,
        attributes: HcaAttributes,
        space: AddressSpace,
        _number: u64,
    ) -> io::Result<Self> {
        let layout = GroupLayout {
            queue_pairs: attributes.queue_pairs_max,
            remote_keys: device.state.config.remote_keys_max,
        };
        Ok(Self {
            device: device.clone(),
            attributes,
            space,
            own: Arc::new(OwnGroup::new(layout)?),
            keys: RemoteKeys::new(layout.remote_keys),
            statistics: Statistics::default(),
        })
    }

    pub(crate) fn own_group(&self) -> &Arc<OwnGroup> {
        &self.own
    }

    /// The device this group belongs to.
    #[must_use]
    pub fn device(&self) -> &EmulatedDevice {
        &self.device
    }

    /// What this group has done so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// When this group's next deferred step is due under [`crate::Clock::Virtual`]; `None` when only
    /// peers or posts can cause one. A simulator that has nothing else to do advances to it.
    #[must_use]
    pub fn next_due(&self) -> Option<Nanoseconds> {
        None
    }

    /// Asks `service` on `fabric` for a connection (CM REQ with `private_data`). The answer comes from
    /// [`Self::poll_connect`], under the id given here; also a refusal that is known at once.
    pub fn connect(
        &mut self,
        _fabric: &Fabric,
        _service: &str,
        _parameters: QpParameters,
        _private_data: &[u8],
    ) -> ConnectId {
        ConnectId(0)
    }

    /// The next answer to a connection attempt.
    pub fn poll_connect(&mut self) -> Option<ConnectEvent> {
        None
    }

    /// Lets peers of this group's connections address `length` bytes from `offset` of `segment`, which
    /// must have a descriptor when a peer is another process.
    ///
    /// # Errors
    /// The range is not inside, or a limit (keys, segments) is reached.
    pub fn register_remote(
        &mut self,
        segment: &Segment,
        offset: u64,
        length: u64,
        access: RemoteAccess,
    ) -> io::Result<RemoteKey> {
        let (index, _new) = self.keys.segment_index(segment)?;
        self.keys.publish(&self.own, index, offset, length, access)
    }

    /// Takes a remote key back: peers' later operations on it fail with `RemoteAccess`. Whether it
    /// was valid.
    pub fn invalidate(&mut self, rkey: u32) -> bool {
        self.keys.invalidate(&self.own, rkey)
    }

    /// Fault: the connection is cut without a DREQ, as when a process dies. Both ends get
    /// `Disconnected`.
    pub fn sever(&mut self, _qp: QpHandle) {}

    /// Fault: the peer stops answering on this connection. Whatever is outstanding and posted later
    /// ends with `RetryExceeded`; nothing arrives any more.
    pub fn silence(&mut self, _qp: QpHandle) {}

    /// Fault: the queue pair goes to the error state on its own (`QpFatal`).
    pub fn fail_queue_pair(&mut self, _qp: QpHandle) {}
}

impl Hca for EmulatedHca {
    type Connection = EmulatedConnection;

    fn attributes(&self) -> HcaAttributes {
        self.attributes
    }

    fn accept(
        &mut self,
        _connection: EmulatedConnection,
        _parameters: QpParameters,
        _private_data: &[u8],
    ) -> Result<QpHandle, CmError> {
        let _ = &mut self.space;
        Err(CmError::NoResources)
    }

    fn reject(&mut self, connection: EmulatedConnection, private_data: &[u8]) {
        connection.reject(private_data);
    }

    fn disconnect(&mut self, _qp: QpHandle) {}

    fn destroy(&mut self, _qp: QpHandle) {}

    fn poll_cm(&mut self) -> Option<CmEvent> {
        None
    }

    fn post_receive(&mut self, _request: ReceiveRequest) -> Result<(), PostError> {
        Err(PostError::Full)
    }

    fn post_send(&mut self, _qp: QpHandle, _chain: &[SendRequest]) -> Result<(), PostError> {
        Err(PostError::NotConnected)
    }

    fn ring(&mut self, _qp: QpHandle) {}

    fn poll(&mut self, _completions: &mut [WorkCompletion]) -> usize {
        0
    }

    fn arm(&mut self) -> bool {
        true
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.own.wake.fd())
    }
}
