//! Any bytes, split into lines, through the `syslog` decoder: never a panic, every message a row or a reject, arrays that
//! Arrow finds valid, and documents that are JSON objects on one line.

#![no_main]

use libfuzzer_sys::fuzz_target;

const CONFIGS: [&str; 4] = ["{}", "format: rfc3164", "format: rfc5424", "charset_errors: replace"];

fuzz_target!(|data: &[u8]| logdrive_fuzz::check_text_decoder("syslog", &CONFIGS, data));
