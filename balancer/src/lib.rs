//! The lab balancer.
