#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| balancer_fuzz::responses(input));
