//! The lab's web application: arguments, the machine behind it, bind, serve.
//!
//! Built on may_minihttp, which bounds neither a request's head nor the answers that a client does not read, and
//! takes at most 16 header fields: it must only be reachable through a balancer that does. No TLS, no HTTP/2.

mod answer;
mod args;
mod capacity;
mod connection;
mod faults;
mod machine;
mod request;
mod service;
mod types;

use std::{
    io::{self, Write},
    net::{SocketAddr, TcpListener},
    num::NonZeroU64,
    process::ExitCode,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use may_minihttp::HttpServiceFactory;
use rustix::process::Resource;

use crate::{
    args::Args,
    capacity::Fifo,
    connection::Factory,
    machine::{Burner, Machine},
    service::App,
};

/// Coroutines kept for reuse. may keeps 1000 by default, which costs 8 MB in every worker.
const COROUTINES_KEPT: usize = 16;

/// Stack of a coroutine, in words: 64 KiB. may's 32 KiB would be close for JSON in a debug build. Only pages that are
/// touched cost memory.
const STACK_WORDS: usize = 0x2000;

/// How often an idle scheduler thread looks around, where may's default is 10 ms. Sleeping coroutines and
/// connections wake it themselves.
const IDLE_LOOK: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("worker: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until the process is ended; returns only errors.
fn run(args: Args) -> Result<(), String> {
    exit_on_sigterm();
    raise_descriptor_limit();
    exact_timers();
    let address = free_address(args.listen).map_err(|why| cannot_listen(args.listen, &why))?;
    let vcpus = thread::available_parallelism().map_or(1, usize::from);
    configure_may(if args.emulate.is_some() { 1 } else { vcpus });
    if args.credits && args.emulate.is_none() {
        eprintln!("worker: no credits to emulate without --emulate; a real machine has its own");
    }
    let about = about(&args);
    let slots = args.emulate.map_or(vcpus, |kind| kind.vcpus);
    let machine = machine(&args, vcpus).map_err(|why| format!("start a thread: {why}"))?;
    let app: &'static App = Box::leak(Box::new(App::new(args, machine, slots)));
    let server = Factory(app).start(address).map_err(|why| cannot_listen(address, &why))?;
    // Nobody needs to read this line; a closed standard output must not end the worker.
    let _ = writeln!(io::stdout(), "listening on {address}: {about}");
    server.join().map_err(|_| "the listener stopped; this is a bug".to_owned())
}

fn machine(args: &Args, vcpus: usize) -> io::Result<Machine> {
    match args.emulate {
        _ if args.work.is_zero() => Ok(Machine::Free),
        Some(kind) => Ok(Machine::Emulated(Mutex::new(Fifo::new(&kind, args.credits, Instant::now())))),
        None => Burner::start(vcpus).map(Machine::Real),
    }
}

fn about(args: &Args) -> String {
    let cost = match args.emulate {
        _ if args.work.is_zero() => "no work".to_owned(),
        Some(kind) => format!("{:?} of work, emulating {}", args.work, kind.name),
        None => format!("{:?} of work, burnt", args.work),
    };
    format!("{} of {}, {cost}", args.instance_id, args.cluster)
}

/// Binds without SO_REUSEPORT, which may sets: with it two workers on one address would both run and share the
/// traffic. Gives the address with the port that the system chose for port 0.
fn free_address(listen: SocketAddr) -> io::Result<SocketAddr> {
    TcpListener::bind(listen)?.local_addr()
}

fn cannot_listen(address: SocketAddr, why: &io::Error) -> String {
    let hint = match why.kind() {
        io::ErrorKind::AddrInUse => "; another program has that port: end it or choose another",
        io::ErrorKind::AddrNotAvailable => "; this machine has no such address",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need root or CAP_NET_BIND_SERVICE",
        _ => "",
    };
    format!("listen on {address}: {why}{hint}")
}

fn configure_may(threads: usize) {
    let config = may::config();
    config.set_workers(threads).set_pool_capacity(COROUTINES_KEPT).set_stack_size(STACK_WORDS);
    config.set_timeout_ns(IDLE_LOOK.as_nanos() as u64);
    // Pinned, every one-thread worker of a machine would sit on CPU 0.
    config.set_worker_pin(false);
}

/// Without descriptors may's accept spins, and an ordinary user's soft limit is often 1024.
fn raise_descriptor_limit() {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(why) = rustix::process::setrlimit(Resource::Nofile, limit) {
        eprintln!("worker: descriptor limit stays as it is: {why}");
    }
}

/// Timers of this thread, and of those it starts, fire when they are due instead of up to 50 us later.
fn exact_timers() {
    if let Err(why) = rustix::thread::set_current_timer_slack(NonZeroU64::new(1)) {
        eprintln!("worker: emulated work takes up to 0.05 ms longer: {why}");
    }
}

/// SIGTERM ends the worker at once with 0: it has nothing to save, and its balancer drains it before.
fn exit_on_sigterm() {
    extern "C" fn exit(_signal: libc::c_int) {
        // SAFETY: `_exit` is async-signal-safe.
        unsafe { libc::_exit(0) }
    }
    let handler: extern "C" fn(libc::c_int) = exit;
    // SAFETY: the handler only calls an async-signal-safe function and touches no state.
    unsafe { libc::signal(libc::SIGTERM, handler as libc::sighandler_t) };
}
