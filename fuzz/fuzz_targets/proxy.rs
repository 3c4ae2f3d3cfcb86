//! See `throng::fuzzing::proxy`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| throng::fuzzing::proxy(data));
