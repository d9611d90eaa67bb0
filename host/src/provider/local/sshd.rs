//! The SSH server of one instance: listens on the instance's own loopback address and nothing else.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, Shutdown},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use russh::{MethodKind, MethodSet, keys::PrivateKey, server::Config};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::{machine::Guest, session::Visitor, uplink::Linked};

/// The port on each instance's address; below 1024 would need root.
pub(super) const PORT: u16 = 2222;

/// Connections at once: a run keeps one per instance, a person a few more.
const CONNECTIONS_MAX: usize = 64;

/// From connecting to being logged in, as in OpenSSH's server but shorter: this is loopback.
const LOGIN_GRACE: Duration = Duration::from_secs(30);

/// As in OpenSSH's server.
const AUTH_ATTEMPTS_MAX: usize = 6;

/// After an offered key was refused. Long delays protect passwords; there are none.
const REJECTION_TIME: Duration = Duration::from_millis(50);

/// A client that answers none of three keep-alives at this interval is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_MISSES: usize = 3;

/// What a client may send ahead. With russh's 2 MB it hears nothing for so long over a slow uplink that it takes the
/// server for dead; OpenSSH's server says every 100 KB that it has got them.
const WINDOW_BYTES: u32 = 256 << 10;

/// How long to rest when no connection can be accepted, which is when descriptors have run out.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// A running server; dropped, it closes its connections at once and its listener soon.
#[derive(Debug)]
pub(super) struct Server {
    listening: JoinHandle<()>,
    connections: Arc<Connections>,
    /// What the next connection is served with.
    config: Arc<RwLock<Arc<Config>>>,
}

/// Handles of the open sockets, to close them from outside.
#[derive(Debug, Default)]
struct Connections(Mutex<(u64, HashMap<u64, std::net::TcpStream>)>);

impl Server {
    /// Errors when the address is not a loopback address, or somebody else has the port.
    pub(super) async fn start(address: Ipv4Addr, key: PrivateKey, guest: Arc<Guest>) -> io::Result<Self> {
        check_loopback(address)?;
        // tokio sets SO_REUSEADDR, and not SO_REUSEPORT, which would let another process share the port.
        let listener = TcpListener::bind((address, PORT)).await?;
        let connections = Arc::new(Connections::default());
        let config = Arc::new(RwLock::new(Arc::new(config(key))));
        let serving = serve(listener, config.clone(), guest, connections.clone());
        Ok(Self { listening: tokio::spawn(serving), connections, config })
    }

    /// Shows another host key from the next connection on.
    pub(super) fn set_key(&self, key: PrivateKey) {
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config(key));
    }

    /// Returns once the listener is closed, so that nobody can connect any more and the port is free.
    pub(super) async fn stop(mut self) {
        self.listening.abort();
        // It always ends as cancelled.
        let _ = (&mut self.listening).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.listening.abort();
        for socket in self.connections.lock().1.values() {
            // It may have been closed by the client at the same moment.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

fn check_loopback(address: Ipv4Addr) -> io::Result<()> {
    if address.is_loopback() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{address} is not a loopback address")))
}

fn config(key: PrivateKey) -> Config {
    Config {
        keys: vec![key],
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        auth_rejection_time: REJECTION_TIME,
        // OpenSSH's client always asks for "none" first, to learn the methods.
        auth_rejection_time_initial: Some(Duration::ZERO),
        max_auth_attempts: AUTH_ATTEMPTS_MAX,
        inactivity_timeout: None,
        keepalive_interval: Some(KEEP_ALIVE),
        keepalive_max: KEEP_ALIVE_MISSES,
        nodelay: true,
        window_size: WINDOW_BYTES,
        ..Config::default()
    }
}

async fn serve(
    listener: TcpListener,
    config: Arc<RwLock<Arc<Config>>>,
    guest: Arc<Guest>,
    connections: Arc<Connections>,
) {
    let mut was_refused = false;
    loop {
        let accepted = listener.accept().await;
        let is_refused = accepted.is_err();
        match accepted {
            Ok((stream, _)) => {
                if let Some(number) = connections.admit(&stream) {
                    let config = config.read().unwrap_or_else(PoisonError::into_inner).clone();
                    tokio::spawn(attend(stream, number, config, guest.clone(), connections.clone()));
                }
            }
            Err(cause) => {
                // Once is enough: it is tried again and again.
                if !was_refused {
                    note!("{}: accept an SSH connection: {cause}", guest.id);
                }
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
        was_refused = is_refused;
    }
}

/// Serves one connection to its end. Errors are the client's business and are not logged.
async fn attend(
    stream: TcpStream,
    number: u64,
    config: Arc<Config>,
    guest: Arc<Guest>,
    connections: Arc<Connections>,
) {
    let is_authenticated = Arc::new(AtomicBool::new(false));
    let visitor = Visitor::new(guest, is_authenticated.clone());
    let session = async {
        // Only then does the session answer as quickly as it can.
        let _ = stream.set_nodelay(true);
        let _ = russh::server::run_stream(config, Linked::new(stream), visitor).await?.await;
        Ok::<(), russh::Error>(())
    };
    tokio::pin!(session);
    let login = tokio::time::sleep(LOGIN_GRACE);
    tokio::select! {
        _ = &mut session => {}
        () = login => {
            if !is_authenticated.load(Ordering::Acquire) {
                connections.close(number);
            }
            let _ = session.await;
        }
    }
    connections.lock().1.remove(&number);
}

impl Connections {
    /// Remembers the socket; `None` when there are too many.
    fn admit(&self, stream: &TcpStream) -> Option<u64> {
        use std::os::fd::AsFd;
        let mut inner = self.lock();
        if inner.1.len() >= CONNECTIONS_MAX {
            return None;
        }
        let socket = std::net::TcpStream::from(stream.as_fd().try_clone_to_owned().ok()?);
        inner.0 += 1;
        let number = inner.0;
        inner.1.insert(number, socket);
        Some(number)
    }

    fn close(&self, number: u64) {
        if let Some(socket) = self.lock().1.get(&number) {
            // It may have been closed by the client at the same moment.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    fn lock(&self) -> MutexGuard<'_, (u64, HashMap<u64, std::net::TcpStream>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_listened_on() {
        check_loopback(Ipv4Addr::new(127, 77, 3, 11)).unwrap();
        for address in [Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(128, 0, 0, 1)] {
            assert!(check_loopback(address).is_err(), "{address}");
        }
    }
}
