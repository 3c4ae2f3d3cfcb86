//! See `throng::fuzzing::cluster`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| throng::fuzzing::cluster(data));
