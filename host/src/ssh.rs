//! Being built.
use crate::{Error, provider::Instance};
use std::path::Path;
pub fn write_config(_dir: &Path, _instances: &[Instance], _identity: &Path) -> Result<(), Error> {
    Ok(())
}
