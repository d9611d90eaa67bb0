//! Signals, taken one by one by the main thread instead of interrupting anybody.

use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

/// What the process was asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// SIGHUP.
    Reload,
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGUSR2: start a successor.
    Replace,
}

/// The signals that are waited for. Made before any other thread, so that all threads leave them alone.
pub(crate) struct Signals(libc::sigset_t);

impl Signals {
    pub(crate) fn block() -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: `sigemptyset` initialises the set; the others take an initialised one and valid signal numbers.
        let (set, error) = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            let mut set = set.assume_init();
            for signal in [libc::SIGHUP, libc::SIGTERM, libc::SIGINT, libc::SIGUSR2] {
                libc::sigaddset(&mut set, signal);
            }
            (set, libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()))
        };
        if error == 0 { Ok(Self(set)) } else { Err(io::Error::from_raw_os_error(error)) }
    }

    /// Waits for a signal, at most `wait`.
    pub(crate) fn next(&self, wait: Duration) -> Option<Signal> {
        let timeout =
            libc::timespec { tv_sec: wait.as_secs() as libc::time_t, tv_nsec: wait.subsec_nanos().into() };
        // SAFETY: the set is initialised, the timeout lives through the call, and no information is asked for.
        match unsafe { libc::sigtimedwait(&self.0, std::ptr::null_mut(), &timeout) } {
            libc::SIGHUP => Some(Signal::Reload),
            libc::SIGTERM | libc::SIGINT => Some(Signal::Stop),
            libc::SIGUSR2 => Some(Signal::Replace),
            _ => None,
        }
    }
}
