//! Any bytes as a configuration file: parsed or refused with places inside the file, never a panic, never long.
#![no_main]

use libfuzzer_sys::fuzz_target;
use logdrive_schemas::RowSchema;
use logdrive_schemas::component::{Limits, Node};

fuzz_target!(|data: &[u8]| {
    match Node::parse(data, Limits::default()) {
        Ok(node) => {
            assert!(node.span.start <= data.len());
            let mut errors = Vec::new();
            if RowSchema::parse(&node, &mut errors).is_some() && errors.is_empty() {
                assert!(node.as_map().is_some());
            }
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            assert!(errors.iter().all(|e| e.span.start <= data.len() && !e.message.is_empty()));
        }
    }
});
