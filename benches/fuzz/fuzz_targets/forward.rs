//! Any bytes as frames of the forward protocol: nothing panics, where a frame ends does not depend on how it was cut, and
//! what is no reject is UTF-8 or shows what it is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use logdrive_connectors::sources::forward::frames::{Frame, Shape};
use logdrive_connectors::sources::forward::msgpack::Scan;
use logdrive_connectors::sources::net::collect::Collect;

const MESSAGE_BYTES_MAX: usize = 256;
const FRAME_BYTES_MAX: usize = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((piece, stream)) = data.split_first() else { return };
    let whole = Scan::default().end(stream, FRAME_BYTES_MAX);
    let (mut scan, mut cut) = (Scan::default(), 0);
    let in_pieces = loop {
        cut = (cut + usize::from(*piece) + 1).min(stream.len());
        match scan.end(&stream[..cut], FRAME_BYTES_MAX) {
            Ok(None) if cut < stream.len() => {}
            end => break end,
        }
    };
    assert_eq!(whole, in_pieces);
    let Ok(Some(end)) = whole else { return };
    let shape = Shape { tag_key: "tag".into(), time_key: "@timestamp".into(), expanded_bytes_max: 1 << 20 };
    let Ok(Some(mut frame)) = Frame::read(&stream[..end], &shape) else { return };
    let (mut into, mut scratch) = (Collect::new(MESSAGE_BYTES_MAX), Vec::new());
    let mut n_messages = 0;
    while frame.next(&shape, &mut scratch, &mut into) {
        n_messages += 1;
        assert!(n_messages <= FRAME_BYTES_MAX);
    }
    let group = into.take();
    assert!(group.messages.iter().all(|m| m.len as usize <= MESSAGE_BYTES_MAX + 1));
    assert!(frame.n_malformed() <= 1);
});
