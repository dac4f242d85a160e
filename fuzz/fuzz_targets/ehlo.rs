#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| postrider::testing::fuzz::ehlo(octets));
