//! Where connection requests of a whole card arrive: one or several addresses of one device.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use lunar_platform::{ConnectRequest, Listener};
use lunar_verbs_ibv_sys as sys;

use crate::connection::{CmId, EventChannel, IbvConnection, Reads};
use crate::device::{Device, DeviceState};
use crate::error::OpenError;

/// Requests that may wait for an answer at each address.
const BACKLOG: i32 = 128;

/// Takes connection requests until it is dropped.
pub struct IbvListener {
    device: Arc<DeviceState>,
    /// Called once, when the device is removed.
    when_removed: Option<Box<dyn FnOnce() + Send>>,
    /// Ahead of their channel.
    ids: Vec<CmId>,
    channel: EventChannel,
}

impl std::fmt::Debug for IbvListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("IbvListener");
        shown.field("device", &self.device.name).field("ids", &self.ids).finish_non_exhaustive()
    }
}

impl IbvListener {
    /// Listens at `addresses`, for connections that come in on `device`.
    ///
    /// # Errors
    /// An address that is not of an RDMA device, or is in use.
    pub fn new(device: &Device, addresses: &[SocketAddr]) -> Result<Self, OpenError> {
        let device = Arc::clone(&device.0);
        let channel = EventChannel::new(device.library)
            .map_err(device.failed("a channel of the connection manager (modprobe rdma_ucm)"))?;
        let mut ids = Vec::with_capacity(addresses.len());
        for address in addresses {
            let refused = |reason| OpenError::Listen { address: *address, reason };
            let id = channel.create_id().map_err(refused)?;
            id.listen(address, BACKLOG).map_err(refused)?;
            ids.push(id);
        }
        Ok(Self { device, when_removed: None, ids, channel })
    }

    /// Has `call` called when the device is removed. Poll groups see `CmEvent::DeviceFatal`; nothing of
    /// the device can be used again, and a device of the same name must be opened anew.
    pub fn when_removed(&mut self, call: impl FnOnce() + Send + 'static) {
        self.when_removed = Some(Box::new(call));
    }

    /// The RDMA port of the `index`th address: the one that was chosen where 0 was asked for.
    #[must_use]
    pub fn port(&self, index: usize) -> Option<u16> {
        self.ids.get(index).map(CmId::local_port)
    }
}

impl Listener for IbvListener {
    type Connection = IbvConnection;

    fn poll(&mut self) -> Option<ConnectRequest<IbvConnection>> {
        while let Some(event) = self.channel.next() {
            let reads =
                Reads { initiator: event.initiator_depth, responder: event.responder_resources };
            let Some(id) = event.request else {
                // Of a request that is not answered yet: its peer gave up, which the answer finds
                // out. Of a listening id only the end of the device comes.
                if event.kind == sys::RDMA_CM_EVENT_DEVICE_REMOVAL {
                    tracing::error!(device = %self.device.name, "the RDMA device was removed");
                    if let Some(call) = self.when_removed.take() {
                        call();
                    }
                }
                continue;
            };
            let peer = event.peer;
            let ours = id.verbs() == self.device.context
                && self.device.name.port.is_none_or(|port| port == id.port_number());
            if !ours {
                tracing::warn!(
                    peer = peer.as_str(),
                    "a connection request came in on another RDMA device or port than {}, which is \
                     the one in use (--hca); it was rejected",
                    self.device.name
                );
                id.reject(&[]);
                continue;
            }
            return Some(ConnectRequest {
                connection: IbvConnection::new(id, reads),
                private_data: event.private_data,
                peer,
            });
        }
        None
    }

    fn reject(&mut self, connection: IbvConnection, private_data: &[u8]) {
        connection.reject(private_data);
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.channel.fd())
    }
}
