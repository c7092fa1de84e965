//! The Unix sockets that the agent serves: bound with mode 0600, removed at the end, never taken from somebody who still
//! answers.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::fs::Mode;
use tokio::net::UnixListener;

/// Removes a socket's path when dropped.
pub(crate) struct SocketPath(PathBuf);

impl Drop for SocketPath {
    fn drop(&mut self) {
        let _gone_already = std::fs::remove_file(&self.0);
    }
}

/// Binds `path`. `option` is the option it came from, for messages.
pub(crate) fn bind(path: &Path, option: &str) -> anyhow::Result<(UnixListener, SocketPath)> {
    let shown = path.display();
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => bail!("something serves `{shown}` already: stop it, or choose another {option}"),
        // Left behind by an agent that was killed.
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(path)
            .with_context(|| format!("the dead socket `{shown}` cannot be removed"))?,
        Err(_) => {}
    }
    // With the mask, there is no moment in which others could connect.
    let before = rustix::process::umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
    let bound = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = bound.with_context(|| {
        format!(
            "{option} `{shown}` cannot be bound: see that its directory exists and can be written"
        )
    })?;
    Ok((listener, SocketPath(path.to_owned())))
}
