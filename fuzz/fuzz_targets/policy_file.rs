#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| postrider::testing::fuzz::policy_file(text));
