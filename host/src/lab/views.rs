//! The files under `artifacts/` that people and scripts read. They are views: what is true is the provider's list
//! and the journal, and a deleted view is written again by the next run.
//!
//! This module gives them their shape and writes nothing.

use std::net::Ipv4Addr;

use serde::Serialize;

use crate::instance::Instance;

/// `artifacts/lb.json`: the shape of the original lab (`id, public_ip, private_ip, sg`), plus `url` and `port`.
#[derive(Debug, Serialize)]
pub(super) struct BalancerView<'a> {
    id: &'a str,
    public_ip: Option<Ipv4Addr>,
    private_ip: Option<Ipv4Addr>,
    sg: Option<&'a str>,
    url: String,
    port: u16,
}

impl<'a> BalancerView<'a> {
    /// `None` while the instance has no address yet.
    #[must_use]
    pub(super) fn of(instance: &'a Instance, group: Option<&'a str>) -> Option<Self> {
        let address = instance.public_ip?;
        Some(Self {
            id: &instance.id,
            public_ip: instance.public_ip,
            private_ip: instance.private_ip,
            sg: group,
            url: format!("http://{address}:{}", instance.http_port),
            port: instance.http_port,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::instance::testing::instance;

    #[test]
    fn instance_view_starts_with_the_shape_of_the_original_lab() {
        let value = serde_json::to_value(instance("micro", 2, "t2.micro", Some("cluster2"))).unwrap();
        for key in ["id", "type", "state", "public_ip", "private_ip", "cluster"] {
            assert!(value.get(key).is_some(), "{key} is missing in {value}");
        }
        assert_eq!(value["state"], "running");
    }
}
