//! Instance types that the provider knows by itself: virtual CPUs, architecture, and the price of some.
//!
//! PURE and offline. The prices are what AWS asked for Linux on demand on the table's date; they are the same in
//! us-east-1 and us-west-2, and somewhat different elsewhere. A price that is not here is unknown, never zero.

use std::fmt::Write as _;

use crate::provider::Cost;

/// When the prices were taken over.
pub(super) const PRICES_OF: &str = "2025-10";
/// Regions for which the prices hold.
const PRICED_REGIONS: [&str; 2] = ["us-east-1", "us-west-2"];
/// A public IPv4 address, in US dollars per hour.
const USD_ADDRESS_HOUR: f64 = 0.005;
/// A gigabyte of general-purpose disk, in US dollars per hour (0.08 per month of 730 hours).
const USD_DISK_GB_HOUR: f64 = 0.08 / 730.0;
/// The root disk of Canonical's images.
const DISK_GB: f64 = 8.0;

/// An instance type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) vcpus: u32,
    pub(super) arch: Arch,
    /// US dollars per hour.
    usd: Option<f64>,
}

/// A processor architecture, in Rust's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arch {
    X86_64,
    Aarch64,
}

impl Arch {
    /// The architecture that this labhost, and so the programs it builds, are for.
    pub(super) fn of_this_build() -> Option<Self> {
        Self::from_name(std::env::consts::ARCH)
    }

    /// From Rust's or EC2's name.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        match name {
            "x86_64" => Some(Self::X86_64),
            "aarch64" | "arm64" => Some(Self::Aarch64),
            _ => None,
        }
    }

    /// In EC2's words.
    pub(super) fn ec2_name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "arm64",
        }
    }

    /// In the words of Canonical's image names.
    pub(super) fn debian_name(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }
}

const fn kind(name: &'static str, vcpus: u32, usd: f64) -> Kind {
    Kind { name, vcpus, arch: Arch::X86_64, usd: Some(usd) }
}

const fn arm(name: &'static str, vcpus: u32, usd: Option<f64>) -> Kind {
    Kind { name, vcpus, arch: Arch::Aarch64, usd }
}

const fn unpriced(name: &'static str, vcpus: u32) -> Kind {
    Kind { name, vcpus, arch: Arch::X86_64, usd: None }
}

const KINDS: [Kind; 32] = [
    kind("t2.nano", 1, 0.0058),
    kind("t2.micro", 1, 0.0116),
    kind("t2.small", 1, 0.023),
    kind("t2.medium", 2, 0.0464),
    kind("t2.large", 2, 0.0928),
    kind("t2.xlarge", 4, 0.1856),
    kind("t2.2xlarge", 8, 0.3712),
    kind("t3.nano", 2, 0.0052),
    kind("t3.micro", 2, 0.0104),
    kind("t3.small", 2, 0.0208),
    kind("t3.medium", 2, 0.0416),
    kind("t3.large", 2, 0.0832),
    kind("t3.xlarge", 4, 0.1664),
    kind("t3.2xlarge", 8, 0.3328),
    unpriced("t3a.micro", 2),
    unpriced("t3a.small", 2),
    unpriced("t3a.medium", 2),
    unpriced("t3a.large", 2),
    unpriced("m5.large", 2),
    unpriced("m5.xlarge", 4),
    unpriced("m6i.large", 2),
    unpriced("m6i.xlarge", 4),
    unpriced("c5.large", 2),
    unpriced("c5.xlarge", 4),
    unpriced("c6i.large", 2),
    unpriced("c6i.xlarge", 4),
    arm("t4g.nano", 2, Some(0.0042)),
    arm("t4g.micro", 2, Some(0.0084)),
    arm("t4g.small", 2, Some(0.0168)),
    arm("t4g.medium", 2, Some(0.0336)),
    arm("t4g.large", 2, Some(0.0672)),
    arm("m6g.large", 2, None),
];

/// The type with this name, if it is one of those known here.
pub(super) fn find(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name == name)
}

/// Names of the types of this architecture.
pub(super) fn names(arch: Option<Arch>) -> Vec<&'static str> {
    KINDS.iter().filter(|kind| arch.is_none_or(|arch| kind.arch == arch)).map(|kind| kind.name).collect()
}

/// Whether AWS counts CPU credits for the type, so that it could run at extra cost.
pub(super) fn is_burstable(name: &str) -> bool {
    name.starts_with("t2.") || name.starts_with("t3") || name.starts_with("t4g.")
}

/// What instances of these types cost together in this region, with their addresses and disks.
pub(super) fn cost(types: &[&str], region: &str) -> Cost {
    let priced: Vec<f64> = types.iter().filter_map(|name| find(name)?.usd).collect();
    let count = types.len() as f64;
    let extras = count * (USD_ADDRESS_HOUR + DISK_GB * USD_DISK_GB_HOUR);
    let known = priced.iter().sum::<f64>() + extras;
    let mut unknown: Vec<&str> =
        types.iter().filter(|name| find(name).and_then(|kind| kind.usd).is_none()).copied().collect();
    unknown.sort_unstable();
    unknown.dedup();
    let is_complete = unknown.is_empty();
    let mut note = if types.is_empty() {
        "nothing runs, so nothing is paid".to_owned()
    } else if is_complete {
        format!("it costs about {known:.2} dollars per hour with addresses and disks")
    } else {
        format!(
            "the price of {} is unknown; the rest costs about {known:.2} dollars per hour",
            unknown.join(", ")
        )
    };
    if !types.is_empty() {
        let elsewhere =
            if PRICED_REGIONS.contains(&region) { "" } else { " of us-east-1, not of this region" };
        let _ = write!(note, " (prices of {PRICES_OF}{elsewhere})");
    }
    Cost { usd_per_hour: is_complete.then_some(if types.is_empty() { 0.0 } else { known }), note }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_labs_nine_instances_cost_56_cents() {
        let types = [["t2.large"; 5].as_slice(), ["t2.micro"; 4].as_slice()].concat();
        let cost = cost(&types, "us-east-1");
        assert!((cost.usd_per_hour.unwrap() - 0.563).abs() < 0.001, "{cost:?}");
        assert_eq!(
            cost.note,
            "it costs about 0.56 dollars per hour with addresses and disks (prices of 2025-10)"
        );
    }

    #[test]
    fn unknown_price_is_said_to_be_unknown() {
        let cost = cost(&["m5.large", "t2.micro", "x9.huge"], "eu-west-1");
        assert_eq!(cost.usd_per_hour, None);
        assert!(cost.note.starts_with("the price of m5.large, x9.huge is unknown"), "{}", cost.note);
        assert!(cost.note.ends_with("of us-east-1, not of this region)"), "{}", cost.note);
    }

    #[test]
    fn nothing_costs_nothing() {
        assert_eq!(cost(&[], "us-east-1").usd_per_hour, Some(0.0));
    }
}
