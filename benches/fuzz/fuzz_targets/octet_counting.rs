//! Any bytes as syslog over TCP: nothing panics, messages keep their bound, and how they were cut into reads makes no
//! difference.
#![no_main]

use libfuzzer_sys::fuzz_target;
use logdrive_connectors::sources::net::frames::Frames;
use logdrive_fuzz::messages;

const MESSAGE_BYTES_MAX: usize = 64;

fn read(mut frames: Frames, stream: &[u8], piece: usize) -> (Vec<Vec<u8>>, bool) {
    let mut found = Vec::new();
    for piece in stream.chunks(piece) {
        frames.buffer().extend_from_slice(piece);
        if let Some(group) = frames.take() {
            found.extend(messages(&group));
        }
        assert!(frames.is_lost() || frames.pending() <= MESSAGE_BYTES_MAX + 16);
        if frames.is_lost() {
            return (found, true);
        }
    }
    for group in [frames.finish(), frames.cut()].iter().flatten() {
        found.extend(messages(group));
    }
    assert!(found.iter().all(|message| !message.is_empty() && message.len() <= MESSAGE_BYTES_MAX + 1));
    (found, false)
}

fuzz_target!(|data: &[u8]| {
    let Some((piece, stream)) = data.split_first() else { return };
    for frames in [Frames::syslog, Frames::counted] {
        let whole = read(frames(MESSAGE_BYTES_MAX), stream, usize::MAX);
        assert_eq!(whole, read(frames(MESSAGE_BYTES_MAX), stream, usize::from(*piece) + 1));
    }
});
