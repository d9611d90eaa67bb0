//! Being built.
use super::*;
use std::path::Path;
pub struct Local;
impl Local {
    pub fn new(_: &Path, _: &Path) -> Self {
        Self
    }
}
pub fn agent_main(_: &Path) -> Result<(), Error> {
    Ok(())
}
pub fn guest_main(_: &[String]) -> i32 {
    0
}
impl Provider for Local {
    fn name(&self) -> &'static str {
        "local"
    }
    fn start(&self) -> Pending<'_, ()> {
        Box::pin(async { Ok(()) })
    }
    fn instance_types(&self) -> &'static [&'static str] {
        &["t2.micro", "t2.large"]
    }
    fn ensure_key<'a>(&'a self, _: &'a str, _: &'a str) -> Pending<'a, ()> {
        Box::pin(async { Ok(()) })
    }
    fn ensure_group<'a>(&'a self, _: &'a str, _: &'a [Ingress]) -> Pending<'a, ()> {
        Box::pin(async { Ok(()) })
    }
    fn image<'a>(&'a self, _: &'a str) -> Pending<'a, String> {
        Box::pin(async { Ok("local".into()) })
    }
    fn launch<'a>(&'a self, _: &'a Launch) -> Pending<'a, Vec<Instance>> {
        Box::pin(async { Ok(vec![]) })
    }
    fn list(&self) -> Pending<'_, Vec<Instance>> {
        Box::pin(async { Ok(vec![]) })
    }
    fn terminate<'a>(&'a self, _: &'a [String]) -> Pending<'a, ()> {
        Box::pin(async { Ok(()) })
    }
    fn extend(&self, _: u64) -> Pending<'_, ()> {
        Box::pin(async { Ok(()) })
    }
    fn remains(&self) -> Pending<'_, Vec<String>> {
        Box::pin(async { Ok(vec![]) })
    }
    fn destroy(&self, _: bool) -> Pending<'_, Vec<String>> {
        Box::pin(async { Ok(vec![]) })
    }
}
