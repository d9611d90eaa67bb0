//! The files that `ssh` reads: `ssh_config` and `known_hosts` of a lab.
//!
//! This module opens no connection and does not generate keys.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use russh::keys::{HashAlg, PublicKey};

use crate::{Error, Kind, error::Context, instance::Instance};

/// How long `ssh` may take for one attempt: TCP, banner and key exchange. Longer than any healthy machine needs,
/// short enough that an attempt at a host without a network does not eat the caller's deadline.
const ATTEMPT_MAX_S: u32 = 5;
/// Three silent intervals of 5 s, and `ssh` gives the connection up.
const ALIVE_INTERVAL_S: u32 = 5;
const ALIVE_MISSES_MAX: u32 = 3;

/// Writes `STATE/ssh_config` and `STATE/known_hosts`, each with mode 0600 and in one step (temporary file, rename).
///
/// Every instance with a public address gets one `Host` entry under its name, its id and, when its fleet has no
/// other member, its fleet's name. Paths in the files are absolute, so `ssh -F STATE/ssh_config app-3` works from
/// any directory. Refused: names that are no plain words, host keys that are no keys, and paths that
/// `ssh_config` has no way to write.
pub fn write_config(state_dir: &Path, instances: &[Instance], identity: &Path) -> Result<(), Error> {
    let state_dir = absolute(state_dir)?;
    let known_hosts = state_dir.join("known_hosts");
    let common = common_options(&path_word(&absolute(identity)?)?, &path_word(&known_hosts)?);
    let mut config = String::from("# Written by labhost; changes are lost. Use: ssh -F THIS_FILE NAME\n");
    let mut keys = String::new();
    for instance in instances.iter().filter(|instance| is_reachable(instance)) {
        check_words(instance)?;
        for key in instance.host_key.lines() {
            let _ = writeln!(keys, "{} {}", instance.id, host_key(instance, key)?);
        }
        config.push_str(&host_entry(instance, &aliases(instance, instances), &common));
    }
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(&state_dir).context(Kind::Internal, || format!("create {}", state_dir.display()))?;
    replace(&known_hosts, &keys)?;
    replace(&state_dir.join("ssh_config"), &config)
}

/// An instance whose host key was lost has no entry: nobody could tell it from another machine.
fn is_reachable(instance: &Instance) -> bool {
    instance.public_ip.is_some() && !instance.host_key.is_empty()
}

fn aliases<'a>(instance: &'a Instance, all: &'a [Instance]) -> Vec<&'a str> {
    let mut aliases = vec![instance.name.as_str(), instance.id.as_str()];
    let alone = all.iter().filter(|other| other.fleet == instance.fleet).count() == 1;
    let taken = all.iter().any(|other| other.name == instance.fleet || other.id == instance.fleet);
    if alone && !taken {
        aliases.push(&instance.fleet);
    }
    aliases
}

fn host_entry(instance: &Instance, aliases: &[&str], common: &str) -> String {
    let Some(address) = instance.public_ip else { return String::new() };
    format!(
        "\nHost {}\n    HostName {address}\n    Port {}\n    User {}\n    HostKeyAlias {}\n{common}",
        aliases.join(" "),
        instance.ssh_port,
        instance.user,
        instance.id,
    )
}

/// What every entry shares. Agent, forwarding and key updates are off: nothing of the user's own set-up may
/// change what a lab does.
fn common_options(identity: &str, known_hosts: &str) -> String {
    let options = [
        format!("IdentityFile {identity}"),
        "IdentitiesOnly yes".into(),
        "IdentityAgent none".into(),
        format!("UserKnownHostsFile {known_hosts}"),
        "GlobalKnownHostsFile none".into(),
        "StrictHostKeyChecking yes".into(),
        "CheckHostIP no".into(),
        "UpdateHostKeys no".into(),
        "HostKeyAlgorithms ssh-ed25519".into(),
        "PreferredAuthentications publickey".into(),
        "PasswordAuthentication no".into(),
        "KbdInteractiveAuthentication no".into(),
        "ForwardAgent no".into(),
        "ForwardX11 no".into(),
        format!("ConnectTimeout {ATTEMPT_MAX_S}"),
        format!("ServerAliveInterval {ALIVE_INTERVAL_S}"),
        format!("ServerAliveCountMax {ALIVE_MISSES_MAX}"),
        "LogLevel ERROR".into(),
    ];
    options.iter().fold(String::new(), |text, option| text + "    " + option.as_str() + "\n")
}

/// Names reach the file as they are, and `ssh` as patterns and arguments, so only plain words may be in them.
fn check_words(instance: &Instance) -> Result<(), Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    for word in [&instance.name, &instance.id, &instance.fleet, &instance.user] {
        if word.is_empty() || word.starts_with('-') || !word.chars().all(plain) {
            return Err(Error::usage(format!(
                "write ssh_config: `{}` cannot be a name there",
                word.escape_debug()
            ))
            .with_hint("use letters, digits, `-`, `_` and `.`, and do not begin with `-`"));
        }
    }
    Ok(())
}

/// The pinned key in OpenSSH's form without a comment; parsed, so that nothing else can slip into the file.
fn host_key(instance: &Instance, key: &str) -> Result<String, Error> {
    let key = parse_key(instance, key)?;
    let text = key.to_openssh().context(Kind::Internal, || format!("host key of {}", instance.name))?;
    Ok(text.split(' ').take(2).collect::<Vec<_>>().join(" "))
}

/// `SHA256:...` of the pinned host key, as `ssh` prints fingerprints; of several, joined by `or`.
pub(crate) fn fingerprint(instance: &Instance) -> Result<String, Error> {
    let print = |key: &str| Ok(parse_key(instance, key)?.fingerprint(HashAlg::Sha256).to_string());
    Ok(instance.host_key.lines().map(print).collect::<Result<Vec<_>, Error>>()?.join(" or "))
}

fn parse_key(instance: &Instance, key: &str) -> Result<PublicKey, Error> {
    PublicKey::from_openssh(key).context(Kind::Internal, || {
        format!("host key of {}: `{}` is no public key", instance.name, key.escape_debug())
    })
}

fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path).context(Kind::Internal, || format!("absolute path of {}", path.display()))
}

/// A path as one word of `ssh_config`. Double quotes protect blanks and `%%` is a percent sign; for the other
/// special forms (quotes, backslashes, `${VAR}`) there is no escape that all versions of `ssh` know.
fn path_word(path: &Path) -> Result<String, Error> {
    let refuse = |what: &str| {
        Err(Error::usage(format!(
            "write ssh_config: the path {path:?} holds {what}, which ssh cannot read there"
        ))
        .with_hint("move the lab to another directory, or choose one with --state DIR"))
    };
    let Some(text) = path.to_str() else { return refuse("bytes that are not UTF-8") };
    if text.contains("${") {
        return refuse("`${`");
    }
    match text.chars().find(|c| c.is_control() || matches!(c, '"' | '\\')) {
        Some('"') => refuse("a double quote"),
        Some('\\') => refuse("a backslash"),
        Some('\n') => refuse("a newline"),
        Some(_) => refuse("a control character"),
        None => Ok(format!("\"{}\"", text.replace('%', "%%"))),
    }
}

/// Replaces a file in one step; the new one has mode 0600 from its first byte.
fn replace(path: &Path, text: &str) -> Result<(), Error> {
    let write = || -> std::io::Result<()> {
        let directory = path.parent().unwrap_or_else(|| Path::new("/"));
        // Known by the file's name, so that `stop` finds what a killed labhost left.
        let prefix = format!(".{}.", path.file_name().unwrap_or_default().display());
        let mut file = tempfile::Builder::new().prefix(&prefix).tempfile_in(directory)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_data()?;
        file.persist(path)?;
        Ok(())
    };
    write().context(Kind::Internal, || format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, process::Command};

    use super::*;
    use crate::instance::State;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    fn instance(fleet: &str, slot: u32) -> Instance {
        Instance {
            id: format!("i-0123456789abcde{}{slot}", fleet.len()),
            instance_type: "t2.micro".into(),
            state: State::Running,
            public_ip: Some([127, 77, 0, 10 + slot as u8].into()),
            private_ip: None,
            cluster: None,
            name: format!("{fleet}-{slot}"),
            fleet: fleet.into(),
            slot,
            role: None,
            user: "lab".into(),
            ssh_port: 2222,
            http_port: 8080,
            host_key: KEY.into(),
            emulated: true,
            launched_at_s: 0,
            expires_at_s: 0,
        }
    }

    /// What the installed `ssh` makes of the file for this alias, from a directory that is not the state's.
    fn as_ssh_reads(state: &Path, alias: &str) -> String {
        let config = state.join("ssh_config");
        let output = Command::new("ssh").arg("-G").arg("-F").arg(config).arg(alias).current_dir("/").output();
        let output = output.expect("ssh is installed (apt-get install openssh-client)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn ssh_reads_back_what_was_meant() {
        let base = tempfile::tempdir().unwrap();
        let state = base.path().join("a b's 100%d é");
        let identity = state.join("keys/id key");
        write_config(&state, &[instance("app", 1), instance("app", 2), instance("balancer", 1)], &identity)
            .unwrap();
        for alias in ["app-2", &instance("app", 2).id] {
            let read = as_ssh_reads(&state, alias);
            for line in [
                "hostname 127.77.0.12".to_owned(),
                "port 2222".into(),
                "user lab".into(),
                "stricthostkeychecking true".into(),
                "passwordauthentication no".into(),
                "hostkeyalgorithms ssh-ed25519".into(),
                format!("hostkeyalias {}", instance("app", 2).id),
                // `ssh -G` expands the one and not yet the other.
                format!("identityfile {}", identity.display()).replace('%', "%%"),
                format!("userknownhostsfile {}", state.join("known_hosts").display()),
            ] {
                assert!(read.lines().any(|given| given == line), "`{line}` is not in\n{read}");
            }
        }
    }

    #[test]
    fn the_fleet_name_is_an_alias_only_when_it_means_one_instance() {
        let state = tempfile::tempdir().unwrap();
        let all = [instance("app", 1), instance("app", 2), instance("balancer", 1)];
        write_config(state.path(), &all, Path::new("/id")).unwrap();
        assert!(as_ssh_reads(state.path(), "balancer").contains("hostname 127.77.0.11\n"));
        assert!(as_ssh_reads(state.path(), "app").contains("hostname app\n"));
    }

    #[test]
    fn files_are_private_and_hold_one_key_line_per_instance() {
        let state = tempfile::tempdir().unwrap();
        let with_comment = Instance { host_key: format!("{KEY} someone@somewhere"), ..instance("app", 1) };
        write_config(state.path(), std::slice::from_ref(&with_comment), Path::new("/id")).unwrap();
        write_config(state.path(), &[with_comment], Path::new("/id")).unwrap();
        for name in ["ssh_config", "known_hosts"] {
            let mode = fs::metadata(state.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let keys = fs::read_to_string(state.path().join("known_hosts")).unwrap();
        assert_eq!(keys, format!("{} {KEY}\n", instance("app", 1).id));
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 2, "no temporary file is left");
    }

    #[test]
    fn refuses_what_ssh_config_cannot_hold() {
        let state = tempfile::tempdir().unwrap();
        for path in ["/a\"b", "/a\nb", "/a\\b", "/a${HOME}", "/a\tb"] {
            let error = write_config(state.path(), &[], Path::new(path)).unwrap_err();
            assert_eq!(error.kind, Kind::Usage, "{path:?}: {error}");
        }
        for name in ["", "a b", "a\nHost *", "*", "!x", "-oProxyCommand=x", "a\"b"] {
            let named = Instance { name: name.into(), ..instance("app", 1) };
            assert_eq!(write_config(state.path(), &[named], Path::new("/id")).unwrap_err().kind, Kind::Usage);
        }
        for key in ["ssh-ed25519", "ssh-ed25519 !!!!", "x\ny"] {
            let keyed = Instance { host_key: key.into(), ..instance("app", 1) };
            assert!(write_config(state.path(), &[keyed], Path::new("/id")).is_err(), "{key:?}");
        }
    }

    #[test]
    fn an_instance_without_an_address_or_a_host_key_has_no_entry() {
        let state = tempfile::tempdir().unwrap();
        let pending = Instance { public_ip: None, ..instance("app", 1) };
        let lost = Instance { host_key: String::new(), ..instance("app", 2) };
        write_config(state.path(), &[pending, lost], Path::new("/id")).unwrap();
        assert!(!fs::read_to_string(state.path().join("ssh_config")).unwrap().contains("Host app"));
    }

    #[test]
    fn every_pinned_key_is_a_line() {
        let state = tempfile::tempdir().unwrap();
        let two = Instance { host_key: format!("{KEY}\n{KEY}"), ..instance("app", 1) };
        write_config(state.path(), std::slice::from_ref(&two), Path::new("/id")).unwrap();
        let keys = fs::read_to_string(state.path().join("known_hosts")).unwrap();
        assert_eq!(keys, format!("{0} {KEY}\n{0} {KEY}\n", two.id));
    }

    #[test]
    fn fingerprint_is_the_one_that_ssh_keygen_prints() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key.pub");
        fs::write(&file, KEY).unwrap();
        let output = Command::new("ssh-keygen").args(["-l", "-f"]).arg(file).output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert_eq!(printed.split(' ').nth(1), Some(fingerprint(&instance("app", 1)).unwrap().as_str()));
    }
}
