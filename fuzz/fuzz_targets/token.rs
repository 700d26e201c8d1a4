#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| netmig_fuzz::token(bytes));
