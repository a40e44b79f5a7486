//! Any bytes as RELP's frames: nothing panics, every `syslog` frame is a message or empty, and how they were cut into reads
//! makes no difference.
#![no_main]

use libfuzzer_sys::fuzz_target;
use logdrive_connectors::sources::net::collect::Collect;
use logdrive_connectors::sources::syslog::relp::frames::{Frame, FrameError, Frames};
use logdrive_fuzz::messages;

const MESSAGE_BYTES_MAX: usize = 64;

fn read(stream: &[u8], piece: usize) -> (Vec<Frame>, Vec<Vec<u8>>, Option<FrameError>) {
    let (mut frames, mut into) = (Frames::default(), Collect::new(MESSAGE_BYTES_MAX));
    let (mut found, mut failed) = (Vec::new(), None);
    'all: for mut piece in stream.chunks(piece) {
        while !piece.is_empty() {
            match frames.step(piece, &mut into) {
                Ok((n, frame)) => {
                    assert!(n > 0);
                    piece = &piece[n..];
                    found.extend(frame);
                }
                Err(error) => {
                    failed = Some(error);
                    break 'all;
                }
            }
        }
    }
    let group = into.take();
    assert!(group.messages.iter().all(|m| m.len as usize <= MESSAGE_BYTES_MAX + 1));
    let n_syslog = found.iter().filter(|frame| matches!(frame, Frame::Syslog { .. })).count();
    assert!(group.messages.len() <= n_syslog);
    (found, messages(&group), failed)
}

fuzz_target!(|data: &[u8]| {
    let Some((piece, stream)) = data.split_first() else { return };
    assert_eq!(read(stream, usize::MAX), read(stream, usize::from(*piece) + 1));
});
