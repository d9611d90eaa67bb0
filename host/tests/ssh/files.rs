//! Files to and from the host, and what is left there when a copy fails.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use labhost::{Kind, ssh::quote};

use crate::{
    process_in,
    processes::{alive, kill},
    target::Target,
    until,
};

pub(crate) async fn an_upload_sends_only_what_is_not_there(target: Target) {
    let session = target.connect().await;
    let local = target.path("local");
    let remote = target.remote("new directory/it's here");
    let content: Vec<u8> = (0..2_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(&local, &content).unwrap();
    let first = session.upload(&local, &remote, 0o755).await.unwrap();
    assert!(first.changed);
    assert_eq!(first.bytes, 2_000_000);
    assert!(fs::read(&remote).unwrap() == content);
    assert_eq!(fs::metadata(&remote).unwrap().permissions().mode() & 0o7777, 0o755);
    let second = session.upload(&local, &remote, 0o700).await.unwrap();
    assert_eq!((second.changed, &second.sha256), (false, &first.sha256));
    assert_eq!(
        fs::metadata(&remote).unwrap().permissions().mode() & 0o7777,
        0o700,
        "the mode is set all the same"
    );
    fs::write(&local, "other").unwrap();
    assert!(session.upload(&local, &remote, 0o755).await.unwrap().changed);
    assert_eq!(fs::read_to_string(&remote).unwrap(), "other");
    assert_eq!(fs::read_dir(target.path("new directory")).unwrap().count(), 1, "no temporary file is left");
}

pub(crate) async fn a_text_is_written_and_a_file_downloaded(target: Target) {
    let session = target.connect().await;
    let remote = target.remote("-n");
    assert!(session.write(&remote, "ünï\n".as_bytes(), 0o600).await.unwrap().changed);
    assert!(!session.write(&remote, "ünï\n".as_bytes(), 0o600).await.unwrap().changed);
    let local = target.path("copy");
    assert_eq!(session.download(&remote, &local).await.unwrap(), 6);
    assert_eq!(fs::read_to_string(&local).unwrap(), "ünï\n");
    let error = session.download(&target.remote("absent"), &local).await.unwrap_err();
    assert!(error.message.ends_with("does not exist there"), "{error}");
    assert_eq!(fs::read_to_string(&local).unwrap(), "ünï\n", "a failed download leaves the old file");
    let error = session.download(&target.remote("state"), &local).await.unwrap_err();
    assert!(error.message.ends_with("is a directory there"), "{error}");
}

pub(crate) async fn what_cannot_be_uploaded_is_said_plainly(target: Target) {
    let session = target.connect().await;
    let local = target.path("local");
    fs::write(&local, "x").unwrap();
    let absent = target.path("absent");
    let error = session.upload(&absent, &target.remote("x"), 0o644).await.unwrap_err();
    assert_eq!(error.message, format!("upload absent to app-1: {}: no such file", absent.display()));
    let error = session.upload(target.directory.path(), &target.remote("x"), 0o644).await.unwrap_err();
    assert!(error.message.contains("it is a directory"), "{error}");
    let error = session.upload(&local, &target.remote("state"), 0o644).await.unwrap_err();
    assert!(error.message.ends_with("is a directory there"), "{error}");
    let error = session.upload(&local, &target.remote("local/x"), 0o644).await.unwrap_err();
    assert!(error.message.ends_with("not a directory"), "{error} {:?}", error.detail);
    let error = session.upload(&local, "/proc/labhost-test", 0o644).await.unwrap_err();
    assert!(error.detail.is_some(), "{error}");
    for name in ["", "dir/"] {
        assert_eq!(session.upload(&local, name, 0o644).await.unwrap_err().kind, Kind::Recipe);
    }
}

/// A file to upload, and the path on the host of an old one that it would replace.
fn old_and_new(target: &Target) -> (PathBuf, String) {
    let (local, remote) = (target.path("worker"), target.remote("there/program"));
    fs::create_dir(target.path("there")).unwrap();
    fs::write(&remote, "old").unwrap();
    fs::write(&local, vec![7; 1_000_000]).unwrap();
    (local, remote)
}

/// The host's `cat` is replaced by one that writes a part and then meets a full disk, as the real one says it.
pub(crate) async fn a_full_disk_leaves_the_old_file_and_nothing_else(target: Target) {
    let session = target.connect().await;
    target.replace_program("cat", "#!/bin/sh\nhead -c 100000\nexec /bin/cat >/dev/full\n");
    let (local, remote) = old_and_new(&target);
    let error = session.upload(&local, &remote, 0o755).await.unwrap_err();
    assert_eq!(error.message, "upload worker to app-1: no space left on device");
    assert_eq!(fs::read_to_string(&remote).unwrap(), "old");
    assert_eq!(fs::read_dir(target.path("there")).unwrap().count(), 1, "no temporary file is left");
}

/// The host's `cat` takes a part and waits, so that the upload is surely in its middle.
fn stalled_upload(target: &Target) -> (PathBuf, String) {
    let (pid, go) = (quote(&target.remote("pid")), quote(&target.remote("go")));
    // A cut connection leaves it without a parent: then it ends with the test's directory at the latest.
    let wait = format!("echo $$ >{pid}\nwhile [ -e {pid} ] && ! [ -e {go} ]; do sleep 0.01; done");
    target.replace_program("cat", &format!("#!/bin/sh\nhead -c 100000\n{wait}\nexec /bin/cat\n"));
    old_and_new(target)
}

async fn only_the_old_file_is_left(target: &Target, remote: &str) {
    let directory = target.path("there");
    until("the temporary file is gone", || fs::read_dir(&directory).unwrap().count() == 1).await;
    assert_eq!(fs::read_to_string(remote).unwrap(), "old");
}

pub(crate) async fn an_upload_given_up_in_the_middle_leaves_the_old_file(target: Target) {
    let session = target.connect().await;
    let (local, remote) = stalled_upload(&target);
    let pid = target.path("pid");
    let process = tokio::select! {
        result = session.upload(&local, &remote, 0o755) => panic!("ended by itself: {result:?}"),
        process = process_in(&pid) => process,
    };
    session.close().await;
    assert!(!alive(process));
    only_the_old_file_is_left(&target, &remote).await;
}

pub(crate) async fn an_upload_killed_on_the_host_leaves_the_old_file(target: Target) {
    let session = target.connect().await;
    let (local, remote) = stalled_upload(&target);
    let pid = target.path("pid");
    let (result, ()) = tokio::join!(session.upload(&local, &remote, 0o755), async {
        kill(process_in(&pid).await);
    });
    assert!(result.is_err(), "{result:?}");
    only_the_old_file_is_left(&target, &remote).await;
}

pub(crate) async fn an_upload_cut_in_the_middle_leaves_the_old_file(mut target: Target) {
    let session = target.connect().await;
    let (local, remote) = stalled_upload(&target);
    let pid = target.path("pid");
    let upload = tokio::spawn({
        let (session, remote) = (session.clone(), remote.clone());
        async move { session.upload(&local, &remote, 0o755).await }
    });
    process_in(&pid).await;
    target.cut();
    let error = upload.await.unwrap().unwrap_err();
    assert!(error.message.contains("the connection to app-1 was lost"), "{error}");
    fs::write(target.path("go"), "").unwrap();
    only_the_old_file_is_left(&target, &remote).await;
}
