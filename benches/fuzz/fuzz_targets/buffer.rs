//! The write-ahead buffer over a segment file of arbitrary bytes, and the batch codec: neither may panic.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use logdrive_connectors::buffer::queue::DiskQueue;
use logdrive_connectors::buffer::{codec, inspect};

fuzz_target!(|data: &[u8]| {
    if let Ok(batch) = codec::decode(data) {
        let again = codec::encode(&batch).expect("what was read can be written");
        codec::decode(&again).expect("what was written can be read");
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    fs::write(dir.path().join(format!("{:020}.seg", 0)), data).expect("the folder can be written");
    let report = inspect::check(dir.path()).expect("the folder can be read");
    let opened = DiskQueue::open(dir.path(), 1 << 20).map(drop);
    if report.damage.is_none() && opened.is_err() {
        // Whole frames that are no batches are found by opening alone.
        assert!(report.undelivered_messages != 0, "a folder without damage opens");
    }
    inspect::repair(dir.path()).expect("the folder can be repaired");
    assert!(inspect::check(dir.path()).expect("the folder can be read").damage.is_none());
});
