//! Telling systemd how the service fares (the protocol of `sd_notify(3)`), where `NOTIFY_SOCKET` asks for it.
//!
//! This module does not read anything back and does not serve a watchdog.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends lines such as `READY=1`. Without anybody to tell, nothing happens.
pub(crate) fn send(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send_to(&socket, state) {
        tracing::warn!(%error, "NOTIFY_SOCKET {}: {error}", socket.to_string_lossy());
    }
}

fn send_to(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_reach_a_socket_in_the_file_system() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("bound");
        send_to(path.as_os_str(), "READY=1").expect("sent");
        let mut text = [0; 32];
        let count = socket.recv(&mut text).expect("received");
        assert_eq!(&text[..count], b"READY=1");
    }
}
