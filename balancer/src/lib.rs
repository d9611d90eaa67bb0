//! An HTTP/1.1 load balancer on io_uring that chooses a backend by expected latency.
//!
//! A request crosses six names: `serve` -> `http::Request` -> `Cluster::pick` -> `Pool::checkout` ->
//! `exchange` -> `Cluster::finish`; where no backend has room for it, it waits in its cluster's queue between the
//! second and the third. Each thread has a runtime, a listener, a pool and a picker of its own; threads share counters,
//! queues and the state of backends, and the configuration through an `Arc` that a reload replaces.
//!
//! It does not speak TLS or HTTP/2, does not resolve names, does not cache, and does not compress.

mod access;
mod admin;
mod bell;
mod buffer;
mod clock;
pub mod config;
mod control;
mod crew;
mod date;
mod driver;
mod error;
mod handover;
pub mod http;
mod insight;
mod listen;
pub mod log;
mod notify;
mod page;
mod place;
mod pool;
mod probe;
mod proxy;
mod retry;
mod server;
mod signals;
mod site;
mod socket;
mod stats;
mod status;
mod successor;
mod thread;
mod watch;

pub use access::AccessOptions;
pub use admin::{AdminError, AskError, ask};
pub use control::{Options, StartError, run};
pub use driver::DriverChoice;
pub use handover::HandoverError;
pub use listen::ListenError;
