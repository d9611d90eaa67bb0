//! The default network and its subnets, one per zone.

use aws_sdk_ec2::types::Subnet;

use super::{Ec2, refusal::Refusal, tags};
use crate::Error;

/// Where instances go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Network {
    pub(super) vpc: String,
    /// Ids of the zones' default subnets, ordered by zone.
    pub(super) subnets: Vec<String>,
}

impl Ec2 {
    /// The region's default network; looked up once.
    pub(super) async fn network(&self) -> Result<&Network, Error> {
        self.network.get_or_try_init(|| self.find_network()).await
    }

    async fn find_network(&self) -> Result<Network, Error> {
        let vpc = self.find_vpc().await?;
        let subnets = self.find_subnets(&vpc).await?;
        Ok(Network { vpc, subnets })
    }

    pub(super) async fn find_vpc(&self) -> Result<String, Error> {
        let vpcs = self.client().await?.ec2.describe_vpcs().filters(tags::filter("is-default", ["true"]));
        let vpcs = vpcs.into_paginator().items().send().collect::<Result<Vec<_>, _>>().await;
        let vpcs = vpcs.map_err(|cause| Refusal::of("find the default network", cause))?;
        vpcs.into_iter().next().and_then(|vpc| vpc.vpc_id).ok_or_else(|| {
            Error::provider("find the default network: this region has none")
                .with_hint("Make one with: aws ec2 create-default-vpc; or choose another --region.")
        })
    }

    /// Ids of the default subnets, ordered by zone.
    pub(super) async fn find_subnets(&self, vpc: &str) -> Result<Vec<String>, Error> {
        let filters = [tags::filter("vpc-id", [vpc]), tags::filter("default-for-az", ["true"])];
        let call = self.client().await?.ec2.describe_subnets().set_filters(Some(filters.to_vec()));
        let found = call.into_paginator().items().send().collect::<Result<Vec<_>, _>>().await;
        let subnets = by_zone(&found.map_err(|cause| Refusal::of("find subnets", cause))?);
        if subnets.is_empty() {
            return Err(Error::provider(format!("find subnets: network {vpc} has none in any zone"))
                .with_hint("Make one with: aws ec2 create-default-subnet --availability-zone ZONE."));
        }
        Ok(subnets)
    }
}

fn by_zone(subnets: &[Subnet]) -> Vec<String> {
    let mut zones: Vec<_> = subnets
        .iter()
        .filter_map(|subnet| Some((subnet.availability_zone()?, subnet.subnet_id()?)))
        .collect();
    zones.sort_unstable();
    zones.into_iter().map(|(_, id)| id.to_owned()).collect()
}

/// The subnets in the order in which a launch tries them: the `number`th launch begins one zone further.
pub(super) fn order(subnets: &[String], number: usize) -> Vec<String> {
    let mut order = subnets.to_vec();
    if !order.is_empty() {
        order.rotate_left(number % subnets.len());
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_are_spread_over_the_zones() {
        let zones = ["a", "b", "c"].map(str::to_owned);
        let first: Vec<_> = (0..4).map(|number| order(&zones, number)[0].clone()).collect();
        assert_eq!(first, ["a", "b", "c", "a"]);
        assert_eq!(order(&zones, 2), ["c", "a", "b"]);
        assert!(order(&[], 2).is_empty());
    }
}
