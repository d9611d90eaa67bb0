//! What others on this machine can see and reach: no file, no secret, no address but the lab's own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use crate::support::{Lab, get};

/// All files and folders below `folder`, itself included; links are not followed.
fn tree(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_owned()];
    let mut next = 0;
    while let Some(path) = found.get(next).cloned() {
        next += 1;
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            found.extend(fs::read_dir(&path).unwrap().flatten().map(|it| it.path()));
        }
    }
    found
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn nobody_else_can_read_the_labs_files() {
    let lab = Lab::up();
    for path in tree(&lab.artifacts()).into_iter().chain(tree(&lab.runtime())) {
        // What a recipe uploads has the mode that it asks for, inside a folder that is closed.
        let is_uploaded = path.components().any(|part| part.as_os_str() == "root") && path.is_file();
        assert!(is_uploaded || mode(&path) & 0o077 == 0, "{}: {:o}", path.display(), mode(&path));
    }
    assert_eq!(mode(&lab.file("artifacts/keys")), 0o700);
    assert_eq!(mode(&lab.file("artifacts/keys/lab")), 0o600);
    assert_eq!(mode(&lab.home("app-1").join("host_key")), 0o600);
    assert_eq!(mode(&lab.runtime()), 0o700);
    assert_eq!(mode(&lab.runtime().join("agent.sock")), 0o600);
}

#[test]
fn private_keys_are_in_no_other_file_and_no_output() {
    let lab = Lab::new();
    let ended = lab.labhost(&["recipes/run.rhai", "--json"]).expect(0);
    let ended = ended.expect_silent_about("PRIVATE KEY");
    let keys: Vec<_> = [lab.file("artifacts/keys/lab")]
        .into_iter()
        .chain(["app-1", "lb-1"].map(|name| lab.home(name).join("host_key")))
        .collect();
    let secrets: Vec<String> = keys.iter().map(|key| secret_in(key)).collect();
    for path in tree(&lab.artifacts()).into_iter().filter(|path| path.is_file() && !keys.contains(path)) {
        let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
        let leaks = text.contains("PRIVATE KEY-----") || secrets.iter().any(|secret| text.contains(secret));
        assert!(!leaks, "{} holds a private key", path.display());
    }
    assert!(secrets.iter().all(|secret| !ended.says(secret)), "{ended}");
}

/// The middle of a private key's text, which is secret.
fn secret_in(key: &Path) -> String {
    let text = fs::read_to_string(key).unwrap();
    assert!(text.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----"), "{}", key.display());
    text.lines().nth(3).expect("the private half").to_owned()
}

/// Addresses at which these processes listen, from the tables of the kernel.
fn listening(pids: &[u32]) -> BTreeSet<(String, u16)> {
    let sockets: BTreeSet<String> = pids.iter().flat_map(|pid| sockets_of(*pid)).collect();
    let tables = ["tcp", "tcp6", "udp", "udp6"]
        .map(|name| fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default());
    let rows = tables.iter().flat_map(|table| table.lines().skip(1)).filter_map(row);
    rows.filter(|(_, inode)| sockets.contains(inode)).map(|(address, _)| address).collect()
}

fn sockets_of(pid: u32) -> Vec<String> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let targets = descriptors.filter_map(|it| fs::read_link(it.path()).ok());
    targets
        .filter_map(|it| Some(it.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect()
}

/// Address and inode of a socket that waits for peers: TCP in state LISTEN, or UDP without one.
fn row(line: &str) -> Option<((String, u16), String)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (address, port) = fields.get(1)?.split_once(':')?;
    let is_open = ["0A", "07"].contains(fields.get(3)?);
    let shown = match u32::from_str_radix(address, 16) {
        Ok(address) => Ipv4Addr::from(address.to_ne_bytes()).to_string(),
        // IPv6 is too long for a number of 32 bits.
        Err(_) => address.to_owned(),
    };
    is_open.then_some(((shown, u16::from_str_radix(port, 16).ok()?), (*fields.get(9)?).to_owned()))
}

#[test]
fn lab_listens_at_its_own_addresses_only() {
    let lab = Lab::up();
    let pids: Vec<u32> = lab.processes().iter().map(|it| it.pid).collect();
    let found = listening(&pids);
    let address = |name: &str| lab.instance(name).public_ip.unwrap().to_string();
    let expected = [("app-1", 2222), ("app-1", 8000), ("lb-1", 2222), ("lb-1", 8080)];
    assert_eq!(found, expected.map(|(name, port)| (address(name), port)).into());
    assert!(found.iter().all(|(address, _)| address.starts_with("127.77.")), "{found:?}");
}

#[test]
fn admin_and_faults_are_closed_to_others() {
    let lab = Lab::up();
    let worker = format!("http://{}:8000", lab.instance("app-1").public_ip.unwrap());
    for path in ["/admin/fault", "/admin/fault?delay=1s"] {
        let status = get(&format!("{worker}{path}")).status;
        assert!([403, 404].contains(&status), "{path}: {status}");
    }
    // The balancer's admin interface is a socket that only its owner can open.
    let sockets: BTreeMap<_, _> = tree(&lab.home("lb-1"))
        .into_iter()
        .filter(|path| {
            std::os::unix::fs::FileTypeExt::is_socket(&fs::symlink_metadata(path).unwrap().file_type())
        })
        .map(|path| (path.clone(), mode(&path)))
        .collect();
    assert!(sockets.values().all(|mode| mode & 0o077 == 0), "{sockets:?}");
    for path in ["/admin", "/admin/drain", "/admin/stats"] {
        assert_ne!(get(&lab.url(path)).status, 200, "{path}");
    }
}
