//! Where connection requests of a whole card arrive: one or several addresses of one or several devices.

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use lunar_platform::{ConnectRequest, Listener};
use lunar_verbs_ibv_sys as sys;

use crate::connection::{CmId, Event, EventChannel, IbvConnection, Reads};
use crate::device::{Device, DeviceState, HcaName};
use crate::error::OpenError;

/// Requests that may wait for an answer at each address.
const BACKLOG: i32 = 128;

/// Is told which device was removed.
type WhenRemoved = Box<dyn FnOnce(&HcaName) + Send>;

/// Takes connection requests until it is dropped.
pub struct IbvListener {
    /// In the order that requests name them by.
    devices: Vec<Arc<DeviceState>>,
    /// Called once, when a device is removed.
    when_removed: Option<WhenRemoved>,
    /// Ahead of their channel.
    ids: Vec<CmId>,
    channel: EventChannel,
}

impl std::fmt::Debug for IbvListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("IbvListener");
        shown.field("devices", &self.devices).field("ids", &self.ids).finish_non_exhaustive()
    }
}

impl IbvListener {
    /// Listens at `addresses`, for connections that come in on `devices`, of which there is at least one.
    ///
    /// # Errors
    /// An address that is not of an RDMA device, or is in use.
    pub fn new(devices: &[Device], addresses: &[SocketAddr]) -> Result<Self, OpenError> {
        let devices: Vec<_> = devices.iter().map(|device| Arc::clone(&device.0)).collect();
        let Some(first) = devices.first() else {
            let reason = io::Error::from_raw_os_error(libc::ENODEV);
            return Err(OpenError::NoDevices { reason });
        };
        let channel = EventChannel::new(first.library)
            .map_err(first.failed("a channel of the connection manager (modprobe rdma_ucm)"))?;
        let mut ids = Vec::with_capacity(addresses.len());
        for address in addresses {
            let refused = |reason| OpenError::Listen { address: *address, reason };
            let id = channel.create_id().map_err(refused)?;
            id.listen(address, BACKLOG).map_err(refused)?;
            ids.push(id);
        }
        Ok(Self { devices, when_removed: None, ids, channel })
    }

    /// Has `call` called with the name of the first device that is removed. Its poll groups see
    /// `CmEvent::DeviceFatal`; nothing of the device can be used again, and a device of the same name must be
    /// opened anew.
    pub fn when_removed(&mut self, call: impl FnOnce(&HcaName) + Send + 'static) {
        self.when_removed = Some(Box::new(call));
    }

    /// Which of the devices, and which port of it, `id` came in on, if it is one that is in use.
    fn device_of(&self, id: &CmId) -> Option<u16> {
        let place = self.devices.iter().position(|device| {
            id.verbs() == device.context
                && device.name.port.is_none_or(|port| port == id.port_number())
        })?;
        u16::try_from(place).ok()
    }

    /// A device is gone: the one that the listening id of this event belongs to.
    fn on_removal(&mut self, event: &Event) {
        let id = self.ids.iter().find(|id| id.raw() == event.id);
        let of_id = |device: &&Arc<DeviceState>| id.is_some_and(|id| id.verbs() == device.context);
        let Some(device) = self.devices.iter().find(of_id).or(self.devices.first()) else { return };
        tracing::error!(device = %device.name, "the RDMA device was removed");
        if let Some(call) = self.when_removed.take() {
            call(&device.name);
        }
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
                    self.on_removal(&event);
                }
                continue;
            };
            let peer = event.peer;
            let Some(device) = self.device_of(&id) else {
                let in_use: Vec<_> = self.devices.iter().map(|one| one.name.to_string()).collect();
                tracing::warn!(
                    peer = peer.as_str(),
                    "a connection request came in on another RDMA device or port than {} (--hca); it was \
                     rejected",
                    in_use.join(", ")
                );
                id.reject(&[]);
                continue;
            };
            return Some(ConnectRequest {
                connection: IbvConnection::new(id, reads),
                private_data: event.private_data,
                peer,
                device,
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
