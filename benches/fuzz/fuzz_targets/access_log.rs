//! Any bytes, split into lines, through the `access_log` decoder: never a panic, every message a row or a reject, arrays that
//! Arrow finds valid, and documents that are JSON objects on one line.

#![no_main]

use libfuzzer_sys::fuzz_target;

const CONFIGS: [&str; 4] = ["{}", "format: common", "charset_errors: replace", "format: 'x$a\"$request\" $msec,$upstream_response_time [$status]'"];

fuzz_target!(|data: &[u8]| logdrive_fuzz::check_text_decoder("access_log", &CONFIGS, data));
