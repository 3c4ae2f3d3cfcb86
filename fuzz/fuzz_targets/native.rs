//! See `throng::fuzzing::native`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| throng::fuzzing::native(data));
