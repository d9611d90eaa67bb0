//! The burstable instance types that can be emulated, with their published figures.
//!
//! Does not emulate anything: see `capacity` for what the figures mean.

/// One instance type.
///
/// Source of vCPUs and credits: "Key concepts for burstable performance instances" in the Amazon EC2 User Guide
/// (docs.aws.amazon.com/AWSEC2/latest/UserGuide/burstable-credits-baseline-concepts.html). One credit is one vCPU
/// at full use for one minute. The baseline and the largest balance follow from the earn rate, as they do there:
/// a vCPU's baseline is its share of what is earned, and 24 hours of earnings can be saved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct InstanceType {
    pub(crate) name: &'static str,
    /// Requests served at once, one per vCPU.
    pub(crate) vcpus: usize,
    /// How fast one vCPU is, relative to a t2 vCPU. EC2 publishes clocks only as upper bounds ("up to 3.3 GHz") and
    /// no ratio between t2 and t3, so all are 1.0: the types differ in vCPUs and credits, as their documentation says.
    pub(crate) speed: f64,
    pub(crate) credits_per_hour: f64,
    /// Credits at launch. T2 in standard mode gets 30 for each vCPU; T3 gets none.
    pub(crate) credits_at_launch: f64,
}

const LAUNCH_CREDITS_PER_VCPU: f64 = 30.0;
const HOURS_SAVED_MAX: f64 = 24.0;

const fn t2(name: &'static str, vcpus: usize, credits_per_hour: f64) -> InstanceType {
    let credits_at_launch = LAUNCH_CREDITS_PER_VCPU * vcpus as f64;
    InstanceType { name, vcpus, speed: 1.0, credits_per_hour, credits_at_launch }
}

const fn t3(name: &'static str, vcpus: usize, credits_per_hour: f64) -> InstanceType {
    InstanceType { name, vcpus, speed: 1.0, credits_per_hour, credits_at_launch: 0.0 }
}

pub(crate) const TYPES: [InstanceType; 14] = [
    t2("t2.nano", 1, 3.0),
    t2("t2.micro", 1, 6.0),
    t2("t2.small", 1, 12.0),
    t2("t2.medium", 2, 24.0),
    t2("t2.large", 2, 36.0),
    t2("t2.xlarge", 4, 54.0),
    t2("t2.2xlarge", 8, 81.6),
    t3("t3.nano", 2, 6.0),
    t3("t3.micro", 2, 12.0),
    t3("t3.small", 2, 24.0),
    t3("t3.medium", 2, 24.0),
    t3("t3.large", 2, 36.0),
    t3("t3.xlarge", 4, 96.0),
    t3("t3.2xlarge", 8, 192.0),
];

impl InstanceType {
    /// The type of that exact name, or `None`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        TYPES.into_iter().find(|one| one.name == name)
    }

    /// The share of one vCPU (0..1) that can be used for ever without spending the balance.
    pub(crate) fn baseline(&self) -> f64 {
        self.credits_per_hour / 60.0 / self.vcpus as f64
    }

    /// The most earned credits that can be saved. Launch credits come on top and are not limited by it.
    pub(crate) fn credits_saved_max(&self) -> f64 {
        self.credits_per_hour * HOURS_SAVED_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Baselines and largest balances as the User Guide's table prints them.
    #[test]
    fn derived_figures_match_the_published_table() {
        for (name, percent, saved) in [
            ("t2.nano", 5.0, 72.0),
            ("t2.micro", 10.0, 144.0),
            ("t2.small", 20.0, 288.0),
            ("t2.medium", 20.0, 576.0),
            ("t2.large", 30.0, 864.0),
            ("t2.xlarge", 22.5, 1296.0),
            ("t2.2xlarge", 17.0, 1958.4),
            ("t3.nano", 5.0, 144.0),
            ("t3.micro", 10.0, 288.0),
            ("t3.small", 20.0, 576.0),
            ("t3.medium", 20.0, 576.0),
            ("t3.large", 30.0, 864.0),
            ("t3.xlarge", 40.0, 2304.0),
            ("t3.2xlarge", 40.0, 4608.0),
        ] {
            let one = InstanceType::named(name).expect(name);
            assert!((one.baseline() * 100.0 - percent).abs() < 1e-9, "{name}: {}", one.baseline());
            assert!((one.credits_saved_max() - saved).abs() < 1e-9, "{name}: {}", one.credits_saved_max());
        }
    }

    #[test]
    fn an_unknown_name_is_no_type() {
        assert_eq!(InstanceType::named("t2.mirco"), None);
        assert_eq!(InstanceType::named(""), None);
    }
}
