#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| handoff::fuzzing::answer(bytes));
