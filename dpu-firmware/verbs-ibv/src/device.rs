//! One RDMA device: opening it by name, its protection domain, and its asynchronous events handed
//! to every poll group. The groups' share is in `group`.
#![allow(unsafe_code)] // calls into libibverbs

use std::collections::VecDeque;
use std::ffi::CStr;
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use lunar_verbs_ibv_sys as sys;
use lunar_verbs_ibv_sys::Library;
use rustix::event::EventfdFlags;

use crate::error::{OpenError, checked, checked_errno, checked_pointer};

/// Which device to use: `rxe0`, or `mlx5_0:2` for one port of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HcaName {
    /// The kernel's name for the device.
    pub device: String,
    /// One of its ports, from 1; `None` for all.
    pub port: Option<u8>,
}

impl FromStr for HcaName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (device, port) = match text.split_once(':') {
            None => (text, None),
            Some((device, port)) => match port.parse::<u8>() {
                Ok(port) if port > 0 => (device, Some(port)),
                _ => {
                    return Err(format!("`{port}` is not a port number: 1 to 255, as in mlx5_0:1"));
                }
            },
        };
        if device.is_empty() || device.contains(['/', ' ']) {
            return Err(format!("`{device}` is not a device name: one of `rdma link`, as rxe0"));
        }
        Ok(Self { device: device.to_owned(), port })
    }
}

impl fmt::Display for HcaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            None => f.write_str(&self.device),
            Some(port) => write!(f, "{}:{port}", self.device),
        }
    }
}

/// An asynchronous event as the groups see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceEvent {
    PortDown,
    PortUp,
    Fatal,
    /// The queue pair of this number failed.
    QpFatal(u32),
    /// A message came before the RTU.
    Established(u32),
    /// The failed queue pair of this number took its last receive from the SRQ.
    LastReceive(u32),
}

/// Where one group gets the events that concern the whole device.
#[derive(Debug)]
pub(crate) struct Mail {
    /// Something may wait: saves the lock.
    pub(crate) waiting: AtomicBool,
    events: Mutex<VecDeque<DeviceEvent>>,
    /// Readable while something waits.
    wake: OwnedFd,
}

impl Mail {
    fn push(&self, event: DeviceEvent) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.push_back(event);
        self.waiting.store(true, Ordering::Release);
        // It fails only when the counter is full, and then the line is signalled.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    pub(crate) fn take(&self) -> VecDeque<DeviceEvent> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.store(false, Ordering::Release);
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        std::mem::take(&mut events)
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd as _;
        self.wake.as_fd()
    }
}

/// An open device. Cheap to clone; clones are the same device.
#[derive(Clone, Debug)]
pub struct Device(pub(crate) Arc<DeviceState>);

#[derive(Debug)]
pub(crate) struct DeviceState {
    pub(crate) library: &'static Library,
    /// As the connection manager opened it: queue pairs of connections must be made on this one.
    /// Stays open as long as the process lives.
    pub(crate) context: *mut sys::ibv_context,
    pub(crate) pd: *mut sys::ibv_pd,
    pub(crate) name: HcaName,
    pub(crate) attributes: sys::ibv_device_attr,
    pub(crate) message_bytes_max: u32,
    mails: Mutex<Vec<Weak<Mail>>>,
}

// SAFETY: contexts and protection domains of libibverbs may be used from all threads.
unsafe impl Send for DeviceState {}
// SAFETY: as above.
unsafe impl Sync for DeviceState {}

impl Drop for DeviceState {
    fn drop(&mut self) {
        // SAFETY: whoever made something of the protection domain holds this state.
        unsafe { (self.library.ibv_dealloc_pd)(self.pd) };
    }
}

/// Name of an open device.
fn device_name(library: &Library, context: *mut sys::ibv_context) -> String {
    // SAFETY: the library gave the context; a device's name is a C string that lives as long.
    unsafe {
        let name = (library.ibv_get_device_name)((*context).device);
        CStr::from_ptr(name).to_string_lossy().into_owned()
    }
}

impl Device {
    /// Opens the device called `name`. Loads the libraries at the first call.
    ///
    /// # Errors
    /// When rdma-core is not installed, or there is no such device, or it cannot be used.
    pub fn open(name: &HcaName) -> Result<Self, OpenError> {
        let library = Library::get()?;
        let mut count = 0;
        // SAFETY: gives null or a list of `count` open devices. The list is kept on purpose: giving
        // it back may close them.
        let contexts = unsafe {
            let list = checked_pointer((library.rdma_get_devices)(&raw mut count))
                .map_err(|reason| OpenError::NoDevices { reason })?;
            std::slice::from_raw_parts(list, usize::try_from(count).unwrap_or(0))
        };
        if contexts.is_empty() {
            let reason = io::Error::from_raw_os_error(libc::ENODEV);
            return Err(OpenError::NoDevices { reason });
        }
        let found = contexts.iter().find(|context| device_name(library, **context) == name.device);
        let Some(&context) = found else {
            let names: Vec<_> = contexts.iter().map(|one| device_name(library, *one)).collect();
            return Err(OpenError::NoSuchDevice {
                wanted: name.device.clone(),
                present: names.join(", "),
            });
        };
        Self::on(library, context, name)
    }

    fn on(
        library: &'static Library,
        context: *mut sys::ibv_context,
        name: &HcaName,
    ) -> Result<Self, OpenError> {
        let failed = |what: &str| {
            let (device, what) = (name.device.clone(), what.to_owned());
            move |reason| OpenError::Create { device, what, reason }
        };
        let mut attributes = MaybeUninit::<sys::ibv_device_attr>::zeroed();
        // SAFETY: an open device and room for its attributes, all of them integers.
        let attributes = unsafe {
            checked_errno((library.ibv_query_device)(context, attributes.as_mut_ptr()))
                .map_err(failed("a list of its attributes"))?;
            attributes.assume_init()
        };
        let ports = attributes.phys_port_cnt;
        if let Some(port) = name.port.filter(|port| *port > ports) {
            return Err(OpenError::NoSuchPort { device: name.device.clone(), port, ports });
        }
        let mut port = MaybeUninit::<sys::ibv_port_attr>::zeroed();
        // SAFETY: an open device, and at least the room that the library believes to be given.
        let port = unsafe {
            let number = name.port.unwrap_or(1);
            checked_errno((library.ibv_query_port)(context, number, port.as_mut_ptr().cast()))
                .map_err(failed("a list of its port's attributes"))?;
            port.assume_init()
        };
        // SAFETY: an open device.
        let pd = unsafe { checked_pointer((library.ibv_alloc_pd)(context)) }
            .map_err(failed("a protection domain"))?;
        // SAFETY: the descriptor stays open as long as the device, which is never closed.
        let events = unsafe { BorrowedFd::borrow_raw((*context).async_fd) };
        rustix::io::ioctl_fionbio(events, true)
            .map_err(|error| failed("a channel for events")(error.into()))?;
        Ok(Self(Arc::new(DeviceState {
            library,
            context,
            pd,
            name: name.clone(),
            attributes,
            message_bytes_max: if port.max_msg_sz == 0 { 1 << 30 } else { port.max_msg_sz },
            mails: Mutex::new(Vec::new()),
        })))
    }

    /// Its name, and the port if only one is used.
    #[must_use]
    pub fn name(&self) -> &HcaName {
        &self.0.name
    }
}

impl DeviceState {
    /// An [`OpenError`] about something of this device.
    pub(crate) fn failed(&self, what: impl Into<String>) -> impl FnOnce(io::Error) -> OpenError {
        let (device, what) = (self.name.device.clone(), what.into());
        move |reason| OpenError::Create { device, what, reason }
    }

    /// Readable when [`Self::pump_events`] has something to do.
    pub(crate) fn events_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: open as long as the device, which is never closed.
        unsafe { BorrowedFd::borrow_raw((*self.context).async_fd) }
    }

    /// A group wants the events from now on.
    pub(crate) fn subscribe(&self) -> io::Result<Arc<Mail>> {
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let mail =
            Arc::new(Mail { waiting: AtomicBool::new(false), events: Mutex::default(), wake });
        self.lock_mails().push(Arc::downgrade(&mail));
        Ok(mail)
    }

    fn lock_mails(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Mail>>> {
        self.mails.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the device's events and tells every group. Whichever group looks first does it for all.
    pub(crate) fn pump_events(&self) {
        loop {
            let mut event = MaybeUninit::<sys::ibv_async_event>::zeroed();
            // SAFETY: an open device and room for an event; the descriptor does not block.
            let event = unsafe {
                let result = (self.library.ibv_get_async_event)(self.context, event.as_mut_ptr());
                if checked(result).is_err() {
                    return;
                }
                event.assume_init()
            };
            self.log_port(&event);
            let told = self.translate(&event);
            let mut event = event;
            // SAFETY: the event came from the library, which waits for this before it destroys what
            // the event is about.
            unsafe { (self.library.ibv_ack_async_event)(&raw mut event) };
            let Some(told) = told else { continue };
            self.lock_mails().retain(|mail| match mail.upgrade() {
                Some(mail) => {
                    mail.push(told);
                    true
                }
                None => false,
            });
        }
    }

    /// Says when a port goes down or comes up, of those in use.
    fn log_port(&self, event: &sys::ibv_async_event) {
        // SAFETY: these two events have a port's number.
        let number = || unsafe { event.element.port_num };
        let name = || format!("{}:{}", self.name.device, number());
        match self.translate(event) {
            Some(DeviceEvent::PortDown) => tracing::warn!(
                port = name(),
                "an RDMA port is down: initiators that reach the card through it do not until it is up"
            ),
            Some(DeviceEvent::PortUp) => tracing::info!(port = name(), "an RDMA port is up"),
            _ => {}
        }
    }

    fn translate(&self, event: &sys::ibv_async_event) -> Option<DeviceEvent> {
        // SAFETY: each kind of event says which element it has; a queue pair lives at least until
        // its event is acknowledged.
        let (port, qp_number) = unsafe {
            match event.event_type {
                sys::IBV_EVENT_QP_FATAL
                | sys::IBV_EVENT_QP_REQ_ERR
                | sys::IBV_EVENT_QP_ACCESS_ERR
                | sys::IBV_EVENT_COMM_EST
                | sys::IBV_EVENT_QP_LAST_WQE_REACHED => (0, (*event.element.qp).qp_num),
                sys::IBV_EVENT_PORT_ACTIVE | sys::IBV_EVENT_PORT_ERR => (event.element.port_num, 0),
                _ => (0, 0),
            }
        };
        let ours = self.name.port.is_none_or(|wanted| i32::from(wanted) == port);
        match event.event_type {
            sys::IBV_EVENT_QP_FATAL | sys::IBV_EVENT_QP_REQ_ERR | sys::IBV_EVENT_QP_ACCESS_ERR => {
                Some(DeviceEvent::QpFatal(qp_number))
            }
            sys::IBV_EVENT_COMM_EST => Some(DeviceEvent::Established(qp_number)),
            sys::IBV_EVENT_QP_LAST_WQE_REACHED => Some(DeviceEvent::LastReceive(qp_number)),
            sys::IBV_EVENT_PORT_ACTIVE => ours.then_some(DeviceEvent::PortUp),
            sys::IBV_EVENT_PORT_ERR => ours.then_some(DeviceEvent::PortDown),
            sys::IBV_EVENT_DEVICE_FATAL => Some(DeviceEvent::Fatal),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_with_or_without_a_port() {
        let name = |device: &str, port| HcaName { device: device.into(), port };
        assert_eq!("rxe0".parse(), Ok(name("rxe0", None)));
        assert_eq!("mlx5_bond_0:2".parse(), Ok(name("mlx5_bond_0", Some(2))));
        assert_eq!(name("mlx5_0", Some(1)).to_string(), "mlx5_0:1");
        for bad in ["", ":1", "rxe0:", "rxe0:0", "rxe0:256", "rxe0:-1", "rxe0:1:2", "a/b", "a b"] {
            let error = bad.parse::<HcaName>().unwrap_err();
            assert!(error.contains("is not a"), "{bad}: {error}");
        }
    }
}
