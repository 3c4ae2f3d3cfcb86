//! See `throng::fuzzing::token`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| throng::fuzzing::token(data));
