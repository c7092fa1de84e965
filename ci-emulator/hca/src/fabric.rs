//! Where services are found: by name in this process, or as a Unix socket in a directory.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::connection_manager::{Inbox, LocalEnd};

/// What connects devices. Cheap to clone; clones of an in-process fabric are the same fabric.
#[derive(Clone, Debug)]
pub struct Fabric(pub(crate) Kind);

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    InProcess(Arc<Mutex<BTreeMap<String, Arc<Inbox<LocalEnd>>>>>),
    Unix(Arc<PathBuf>),
}

impl Fabric {
    /// A fabric of devices in this process, of its own.
    #[must_use]
    pub fn in_process() -> Self {
        Self(Kind::InProcess(Arc::default()))
    }

    /// The fabric of all processes that name the same `directory`, which must exist. Service `name` is
    /// the socket `name.sock` in it.
    #[must_use]
    pub fn unix(directory: &Path) -> Self {
        Self(Kind::Unix(Arc::new(directory.to_owned())))
    }
}

/// The socket's path of `service`.
pub(crate) fn socket_path(directory: &Path, service: &str) -> PathBuf {
    directory.join(format!("{service}.sock"))
}

/// Registers an in-process service.
pub(crate) fn offer(
    services: &Mutex<BTreeMap<String, Arc<Inbox<LocalEnd>>>>,
    service: &str,
    inbox: &Arc<Inbox<LocalEnd>>,
) -> io::Result<()> {
    let mut services = services.lock().unwrap_or_else(PoisonError::into_inner);
    if services.contains_key(service) {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("the service {service} is offered already"),
        ));
    }
    services.insert(service.to_owned(), Arc::clone(inbox));
    Ok(())
}

/// Takes an in-process service back.
pub(crate) fn withdraw(services: &Mutex<BTreeMap<String, Arc<Inbox<LocalEnd>>>>, service: &str) {
    services.lock().unwrap_or_else(PoisonError::into_inner).remove(service);
}

/// Finds an in-process service.
pub(crate) fn find(
    services: &Mutex<BTreeMap<String, Arc<Inbox<LocalEnd>>>>,
    service: &str,
) -> Option<Arc<Inbox<LocalEnd>>> {
    services.lock().unwrap_or_else(PoisonError::into_inner).get(service).cloned()
}
