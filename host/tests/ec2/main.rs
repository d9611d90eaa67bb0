//! The EC2 provider against a fake endpoint whose instances are real: labhost's own program goes the whole way from
//! API call to answer, over aws-sdk-ec2, SSH and HTTP, without an account.
//!
//! Every test ends with an empty ledger, and fails when the endpoint has seen anything that EC2 would not take.

mod chaos;
mod doctor;
#[expect(dead_code, reason = "the tests on machines use the rest")]
mod fake;
mod faults;
mod killed;
#[expect(dead_code, reason = "the tests on machines use the rest")]
mod lab;
mod money;
mod moto;
mod names;
mod plan;
mod service;
mod teardown;
mod trust;
mod whole;
