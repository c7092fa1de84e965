//! Why a device cannot be used, in words; and the libraries' two ways to say so, as `io::Result`.

use std::io;
use std::net::SocketAddr;

use lunar_verbs_ibv_sys::Missing;

/// Why RDMA hardware could not be brought into use.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// rdma-core is not installed.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// The kernel shows no RDMA device at all.
    #[error(
        "this machine has no RDMA device that can be opened ({reason}). `rdma link` lists them; \
         without hardware: modprobe rdma_rxe ib_uverbs rdma_ucm && rdma link add rxe0 type rxe \
         netdev NETDEV"
    )]
    NoDevices {
        /// What the system says.
        reason: io::Error,
    },
    /// None of the devices has the wanted name.
    #[error("there is no RDMA device `{wanted}`; there is {present}")]
    NoSuchDevice {
        /// What was asked for.
        wanted: String,
        /// The names there are.
        present: String,
    },
    /// The device has fewer ports.
    #[error("RDMA device `{device}` has no port {port}: its ports are 1 to {ports}")]
    NoSuchPort {
        /// The device.
        device: String,
        /// What was asked for.
        port: u8,
        /// How many there are.
        ports: u8,
    },
    /// Something of the device could not be made.
    #[error("RDMA device `{device}`: {what} could not be made: {reason}")]
    Create {
        /// The device.
        device: String,
        /// What.
        what: String,
        /// What the system says.
        reason: io::Error,
    },
    /// The address cannot be listened on.
    #[error(
        "connections cannot be taken at {address}: {reason}. The address must be one of a network \
         interface that an RDMA device belongs to, or 0.0.0.0 or [::] for all of them, and its \
         RDMA port must be free"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        reason: io::Error,
    },
}

/// The result of a function that gives 0, or below 0 and sets errno.
pub(crate) fn checked(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The result of a function that gives 0 or an errno.
pub(crate) fn checked_errno(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result.abs())) }
}

/// The result of a function that gives a pointer, or null and sets errno.
pub(crate) fn checked_pointer<T>(pointer: *mut T) -> io::Result<*mut T> {
    if pointer.is_null() { Err(io::Error::last_os_error()) } else { Ok(pointer) }
}
