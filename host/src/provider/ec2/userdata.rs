//! What a new instance is told at its first boot: cloud-init's user data.
//!
//! PURE. It brings the SSH host key that labhost will insist on, `labhost-service`, and the guard that ends the
//! instance at its time: a deadline in a file, looked at at every boot and every twenty seconds, so that it holds
//! over a stop and a start. Shutting down terminates the instance, because it is launched so.
//!
//! Every program on the instance can read its user data, which is why the host key is replaced at the first login.

use std::fmt::Write as _;

/// The program that controls services; `@LOGIN@` and `@HOME@` stand for the login and its home.
pub(super) const SERVICE: &str = include_str!("labhost-service.sh");

const TTL_SCRIPT: &str = "\
#!/bin/sh
# Ends the instance when its time is over; labhost extends it with `labhost-service expires`.
at=$(cat /etc/labhost/expires) || exit 0
[ \"$(date +%s)\" -lt \"$at\" ] || exec systemctl poweroff
";

const TTL_SERVICE: &str = "\
[Unit]
Description=labhost: end this instance when its time is over
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/labhost-ttl
";

const TTL_TIMER: &str = "\
[Unit]
Description=labhost: look at this instance's deadline
[Timer]
OnBootSec=5s
OnUnitActiveSec=20s
AccuracySec=1s
[Install]
WantedBy=timers.target
";

/// What differs from launch to launch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    /// The image's login.
    pub(super) user: &'a str,
    /// OpenSSH's private form.
    pub(super) host_key: &'a str,
    /// OpenSSH's one-line form.
    pub(super) host_key_public: &'a str,
    pub(super) expires_at_s: u64,
}

/// The whole text, as cloud-init reads it.
pub(super) fn render(facts: Facts<'_>) -> String {
    let mut text =
        String::from("#cloud-config\nssh_deletekeys: true\nssh_genkeytypes: [ed25519]\nssh_keys:\n");
    let _ = writeln!(text, "  ed25519_private: |\n{}", indented(facts.host_key, 4));
    let _ = writeln!(text, "  ed25519_public: {}", facts.host_key_public.trim());
    text.push_str("package_update: false\npackage_upgrade: false\nwrite_files:\n");
    file(&mut text, "/usr/local/bin/labhost-service", "0755", &service(facts.user));
    file(&mut text, "/etc/labhost/expires", "0644", &format!("{}\n", facts.expires_at_s));
    file(&mut text, "/usr/local/sbin/labhost-ttl", "0755", TTL_SCRIPT);
    file(&mut text, "/etc/systemd/system/labhost-ttl.service", "0644", TTL_SERVICE);
    file(&mut text, "/etc/systemd/system/labhost-ttl.timer", "0644", TTL_TIMER);
    // Updates in the background would show in measurements.
    text.push_str(
        "runcmd:\n  - [systemctl, daemon-reload]\n  - [systemctl, enable, --now, labhost-ttl.timer]\n  \
         - [sh, -c, 'systemctl mask --now apt-daily.timer apt-daily-upgrade.timer unattended-upgrades.service || true']\n",
    );
    text
}

/// The program for this login, without its comments: EC2 takes no more than 16 KiB of user data.
fn service(user: &str) -> String {
    let is_code = |line: &&str| !line.trim_start().starts_with("# ");
    let code: String = SERVICE.lines().filter(is_code).flat_map(|line| [line, "\n"]).collect();
    code.replace("@LOGIN@", user).replace("@HOME@", &home(user))
}

fn home(user: &str) -> String {
    if user == "root" { "/root".to_owned() } else { format!("/home/{user}") }
}

fn file(text: &mut String, path: &str, mode: &str, content: &str) {
    let _ = writeln!(
        text,
        "  - path: {path}\n    permissions: \"{mode}\"\n    content: |\n{}",
        indented(content, 6)
    );
}

/// For YAML's literal blocks; empty lines stay empty.
fn indented(content: &str, spaces: usize) -> String {
    let line =
        |line: &str| if line.is_empty() { String::new() } else { format!("{}{line}", " ".repeat(spaces)) };
    content.trim_end().lines().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// EC2's limit, before encoding.
    const BYTES_MAX: usize = 16 * 1024;

    const FACTS: Facts<'_> = Facts {
        user: "ubuntu",
        host_key: "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY-----\n",
        host_key_public: "ssh-ed25519 AAAA",
        expires_at_s: 1_700_000_000,
    };

    #[test]
    fn fits_into_ec2s_limit_with_a_real_key() {
        // A key of ed25519 has 400 bytes or so.
        let key = "x".repeat(600);
        let text = render(Facts { host_key: &key, ..FACTS });
        assert!(text.len() < BYTES_MAX, "{} bytes", text.len());
    }

    #[test]
    fn service_program_loses_its_comments_and_nothing_else() {
        let text = service("ubuntu");
        assert!(text.starts_with("#!/bin/sh\n") && text.ends_with("esac\n"));
        let lines = SERVICE.lines().filter(|line| !text.contains(*line) && !line.contains('@'));
        assert!(
            lines.clone().all(|line| line.trim_start().starts_with("# ")),
            "{:?}",
            lines.collect::<Vec<_>>()
        );
    }

    #[test]
    fn same_facts_give_the_same_text() {
        assert_eq!(render(FACTS), render(FACTS));
    }

    #[test]
    fn key_deadline_and_login_are_in_it() {
        let text = render(FACTS);
        assert!(text.starts_with("#cloud-config\n"));
        assert!(text.contains("  ed25519_private: |\n    -----BEGIN OPENSSH PRIVATE KEY-----\n    abc\n"));
        assert!(text.contains("      1700000000\n"));
        assert!(text.contains("      LOGIN=ubuntu\n      HOME_DIR=/home/ubuntu\n"));
        assert!(!text.contains('@') || !text.contains("@LOGIN@"));
        assert!(text.lines().all(|line| !line.contains('\t')), "YAML knows no tabs");
    }

    /// A YAML reader that is not ours must find the files byte for byte.
    #[test]
    fn yaml_readers_see_the_files_unchanged() {
        let script = "import sys, yaml\nd = yaml.safe_load(sys.stdin)\n\
                      f = {x['path']: x['content'] for x in d['write_files']}\n\
                      sys.stdout.write(f['/usr/local/bin/labhost-service'])";
        let mut child = match std::process::Command::new("python3")
            .args(["-c", script])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
        {
            Ok(child) => child,
            Err(cause) => return eprintln!("skipped: python3: {cause}"),
        };
        let mut stdin = child.stdin.take().unwrap();
        std::io::Write::write_all(&mut stdin, render(FACTS).as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        if !output.status.success() {
            return eprintln!("skipped: python3 has no yaml module");
        }
        assert_eq!(String::from_utf8(output.stdout).unwrap(), service("ubuntu"));
    }
}
