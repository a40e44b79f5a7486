//! Any bytes as Beats' frames: nothing panics, memory stays bounded, and how they were cut into reads makes no difference.
#![no_main]

use libfuzzer_sys::fuzz_target;
use logdrive_connectors::sources::beats::frames::{Frame, FrameError, FrameLimits, Frames};
use logdrive_connectors::sources::net::collect::Collect;
use logdrive_fuzz::messages;

const MESSAGE_BYTES_MAX: usize = 64;
const LIMITS: FrameLimits = FrameLimits { window_max: 1000, expanded_bytes_max: 1 << 20 };

fn read(stream: &[u8], piece: usize) -> (Vec<Frame>, Vec<Vec<u8>>, Option<FrameError>) {
    let (mut frames, mut into) = (Frames::new(LIMITS), Collect::new(MESSAGE_BYTES_MAX));
    let (mut found, mut failed) = (Vec::new(), None);
    'all: for mut piece in stream.chunks(piece) {
        loop {
            match frames.step(piece, &mut into) {
                Ok((0, None)) => break,
                Ok((n, frame)) => {
                    piece = &piece[n..];
                    found.extend(frame);
                }
                Err(error) => {
                    failed = Some(error);
                    break 'all;
                }
            }
        }
        assert!(piece.is_empty() && frames.memory() <= 256 << 10);
    }
    let group = into.take();
    assert!(group.messages.iter().all(|m| m.len as usize <= MESSAGE_BYTES_MAX + 1));
    assert!(group.messages.len() <= found.len());
    (found, messages(&group), failed)
}

fuzz_target!(|data: &[u8]| {
    let Some((piece, stream)) = data.split_first() else { return };
    assert_eq!(read(stream, usize::MAX), read(stream, usize::from(*piece) + 1));
});
