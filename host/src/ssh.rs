//! Being built.
use std::{collections::BTreeMap, path::Path, time::Duration};

use crate::{Error, provider::Instance};
use tokio_util::sync::CancellationToken;

pub fn write_config(_dir: &Path, _instances: &[Instance], _identity: &Path) -> Result<(), Error> {
    Ok(())
}
#[derive(Debug, Clone)]
pub struct Session;
#[derive(Debug, Clone, Default)]
pub struct Command {
    pub line: String,
    pub stdin: Option<Vec<u8>>,
    pub env: BTreeMap<String, String>,
    pub cwd: Option<String>,
    pub timeout: Option<Duration>,
    pub check: bool,
}
#[derive(Debug, Clone)]
pub struct Output {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub elapsed: Duration,
}
#[derive(Debug, Clone)]
pub struct Uploaded {
    pub changed: bool,
    pub bytes: u64,
    pub sha256: String,
}
impl Session {
    pub async fn connect(
        _i: &Instance,
        _config: &Path,
        _control: &Path,
        _deadline: Duration,
        _cancel: CancellationToken,
    ) -> Result<Self, Error> {
        Ok(Self)
    }
    pub async fn run(&self, _c: &Command) -> Result<Output, Error> {
        Err(Error::host("stub"))
    }
    pub async fn upload(&self, _l: &Path, _r: &str, _mode: u32) -> Result<Uploaded, Error> {
        Err(Error::host("stub"))
    }
    pub async fn write(&self, _r: &str, _b: &[u8], _mode: u32) -> Result<Uploaded, Error> {
        Err(Error::host("stub"))
    }
    pub async fn download(&self, _r: &str, _l: &Path) -> Result<Uploaded, Error> {
        Err(Error::host("stub"))
    }
    pub async fn wait_http(&self, _a: &str, _p: &str, _s: u16, _d: Duration) -> Result<u16, Error> {
        Err(Error::host("stub"))
    }
    pub async fn close(self) {}
}
pub fn quote(s: &str) -> String {
    s.to_owned()
}
