//! One SSH connection to an instance: who may in, and what a channel may ask for.
//!
//! Only the user `lab` with the instance's key gets in. Commands, shells, terminals, signals and SFTP (when
//! the machine has OpenSSH's program for it) are served; forwarding of any kind is refused, since it is
//! what russh does with requests that this handler does not override.

use std::{
    collections::HashMap,
    ffi::OsString,
    os::unix::ffi::OsStringExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use russh::{
    Channel, ChannelId, ChannelOpenFailure, ChannelWriteHalf, Pty, Sig,
    keys::PublicKey,
    server::{Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey},
};
use rustix::process::Signal;

use super::{
    command::{self, Running},
    machine::Guest,
    pty::{self, Wanted},
};

/// The only login name.
pub(super) const USER: &str = "lab";

/// Sessions at once on one connection: what OpenSSH's server allows, so that nobody comes to rely on more.
const CHANNELS_MAX: usize = 10;

/// OpenSSH's SFTP server, where Debian and where Fedora and Arch have it.
const SFTP_PROGRAMS: [&str; 3] =
    ["/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server"];

pub(super) struct Visitor {
    guest: Arc<Guest>,
    is_authenticated: Arc<AtomicBool>,
    channels: HashMap<ChannelId, Slot>,
}

enum Slot {
    Open { channel: ChannelWriteHalf<Msg>, terminal: Option<Wanted> },
    Running(Running),
}

impl Visitor {
    /// `is_authenticated` is set once the login has succeeded.
    pub(super) fn new(guest: Arc<Guest>, is_authenticated: Arc<AtomicBool>) -> Self {
        Self { guest, is_authenticated, channels: HashMap::new() }
    }

    fn judge(&self, user: &str, key: &PublicKey) -> Auth {
        if user == USER && self.guest.admits(key) { Auth::Accept } else { Auth::reject() }
    }

    fn start(
        &mut self,
        id: ChannelId,
        line: Option<OsString>,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        // A channel runs one command in its life.
        let (channel, terminal) = match self.channels.remove(&id) {
            Some(Slot::Open { channel, terminal }) => (channel, terminal),
            other => {
                self.channels.extend(other.map(|slot| (id, slot)));
                return session.channel_failure(id);
            }
        };
        match command::start(&self.guest, line, terminal, channel) {
            Ok(running) => {
                self.channels.insert(id, Slot::Running(running));
                session.channel_success(id)
            }
            Err(cause) => {
                note!("{}: a command cannot be started: {cause}", self.guest.id);
                session.channel_failure(id)
            }
        }
    }

    fn running(&self, id: ChannelId) -> Option<&Running> {
        match self.channels.get(&id) {
            Some(Slot::Running(running)) => Some(running),
            _ => None,
        }
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        for slot in self.channels.values() {
            if let Slot::Running(running) = slot {
                running.hang_up();
            }
        }
    }
}

impl Handler for Visitor {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, russh::Error> {
        Ok(self.judge(user, offer.public_key))
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, russh::Error> {
        Ok(self.judge(user, key.public_key))
    }

    async fn auth_succeeded(&mut self, _session: &mut Session) -> Result<(), russh::Error> {
        self.is_authenticated.store(true, Ordering::Release);
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.channels.retain(|_, slot| !matches!(slot, Slot::Running(running) if running.is_over()));
        if self.channels.len() >= CHANNELS_MAX {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        // What arrives comes through `data` below; the channel's own queue would block the connection.
        let (_, channel) = channel.split();
        self.channels.insert(channel.id(), Slot::Open { channel, terminal: None });
        reply.accept().await;
        Ok(())
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        _width: u32,
        _height: u32,
        _modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let Some(Slot::Open { terminal, .. }) = self.channels.get_mut(&id) else {
            return session.channel_failure(id);
        };
        *terminal = Some(Wanted::new(term, columns, rows));
        session.channel_success(id)
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        columns: u32,
        rows: u32,
        _width: u32,
        _height: u32,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        if let Some(terminal) = self.running(id).and_then(|running| running.terminal.as_ref()) {
            terminal.resize(pty::size(columns, rows));
        }
        Ok(())
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        line: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.start(id, Some(OsString::from_vec(line.to_vec())), session)
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut Session) -> Result<(), russh::Error> {
        self.start(id, None, session)
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let program = SFTP_PROGRAMS.into_iter().find(|program| name == "sftp" && Path::new(program).exists());
        match program {
            Some(program) => self.start(id, Some(format!("exec {program}").into()), session),
            None => session.channel_failure(id),
        }
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        _name: &str,
        _value: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_failure(id)
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], session: &mut Session) -> Result<(), russh::Error> {
        let Some(running) = self.running(id) else { return Ok(()) };
        if let Err(cause) = running.feed.push(data) {
            // Killed rather than given the end of its input: half an input is not an input.
            running.group.signal(Signal::KILL);
            session.extended_data(
                id,
                1,
                format!("labhost: keep input for the command: {cause}\n").into_bytes(),
            )?;
        }
        Ok(())
    }

    async fn channel_eof(&mut self, id: ChannelId, _session: &mut Session) -> Result<(), russh::Error> {
        if let Some(running) = self.running(id) {
            running.feed.close();
        }
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _session: &mut Session) -> Result<(), russh::Error> {
        if let Some(Slot::Running(running)) = self.channels.remove(&id) {
            running.hang_up();
        }
        Ok(())
    }

    async fn signal(
        &mut self,
        id: ChannelId,
        signal: Sig,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        if let (Some(running), Some(signal)) = (self.running(id), meaning(&signal)) {
            running.group.signal(signal);
        }
        Ok(())
    }
}

fn meaning(signal: &Sig) -> Option<Signal> {
    Some(match signal {
        Sig::ABRT => Signal::ABORT,
        Sig::ALRM => Signal::ALARM,
        Sig::FPE => Signal::FPE,
        Sig::HUP => Signal::HUP,
        Sig::ILL => Signal::ILL,
        Sig::INT => Signal::INT,
        Sig::KILL => Signal::KILL,
        Sig::PIPE => Signal::PIPE,
        Sig::QUIT => Signal::QUIT,
        Sig::SEGV => Signal::SEGV,
        Sig::TERM => Signal::TERM,
        Sig::USR1 => Signal::USR1,
        Sig::Custom(name) if name == "USR2" => Signal::USR2,
        Sig::Custom(_) => return None,
    })
}
