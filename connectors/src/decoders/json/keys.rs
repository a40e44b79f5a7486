//! What comes after a member, predicted from what came after it before.
//!
//! Lines of one source have the same keys in the same order, but for members that are sometimes missing and kinds of
//! events that part ways. So each key remembers the few keys that followed it, the latest first:
//!
//! ```text
//! start ─► {"time": ─► ,"type": ─┬─► ,"amount": ─► ,"items": ─► }
//!                                └─► ,"error": ─► }
//! ```
//!
//! What is remembered is a *joint*: all bytes from the end of one value to the start of the next, with the comma, the
//! white space, the key, its quotes and the colon. One comparison checks the grammar and names the column.

use std::collections::HashMap;

use super::grammar::Text;
use super::lanes::{self, HALF};
use crate::document::scan;

/// How many successors a joint remembers.
const WAYS: usize = 4;
/// How many joints one object of the schema remembers; beyond, it starts anew.
const JOINTS_MAX: usize = 1_024;
/// The longest joint that is remembered, in bytes.
const JOINT_BYTES_MAX: usize = 128;

/// The joint before the first member.
pub(super) const START: u16 = 0;
/// Stands for every joint that is not remembered.
const UNKNOWN: u16 = 1;

/// Instead of a field, for keys that are none.
pub(super) const NO_FIELD: u32 = u32::MAX;

/// What was found behind a value.
pub(super) enum Next {
    /// A member.
    Member {
        /// The joint that led to it.
        joint: u16,
        /// Its field, or [`NO_FIELD`].
        field: u32,
        /// Where its value begins.
        value: usize,
    },
    /// The end of the object: the position behind it.
    End(usize),
}

/// The joints of one object of the schema.
pub(super) struct Keys {
    joints: Vec<Joint>,
    known: HashMap<Box<[u8]>, u16>,
}

struct Joint {
    /// The first bytes, and the next, each with a bit for every byte that is one.
    heads: [([u8; HALF], u32); 2],
    len: usize,
    field: u32,
    /// What came after it, the latest first.
    next: [u16; WAYS],
    /// All further bytes.
    tail: Box<[u8]>,
}

impl Joint {
    /// No joint, but a place to be before one: no text agrees with it.
    fn none() -> Self {
        let mut none = Self::new(&[], NO_FIELD);
        none.heads[0].1 = 1 << HALF;
        none
    }

    fn new(bytes: &[u8], field: u32) -> Self {
        let head = |begin: usize| {
            let rest = bytes.get(begin..).unwrap_or_default();
            let n = rest.len().min(HALF);
            let mut head = [0; HALF];
            head[..n].copy_from_slice(&rest[..n]);
            (head, (1 << n) - 1)
        };
        let tail = bytes.get(2 * HALF..).unwrap_or_default();
        Self {
            heads: [head(0), head(HALF)],
            len: bytes.len(),
            field,
            next: [UNKNOWN; WAYS],
            tail: tail.into(),
        }
    }

    #[inline(always)]
    fn is_at(&self, text: &[u8], at: usize) -> bool {
        let [(first, first_bits), (second, second_bits)] = &self.heads;
        lanes::agrees(text, at, first, *first_bits)
            && (self.len <= HALF
                || lanes::agrees(text, at + HALF, second, *second_bits)
                    && (self.len <= 2 * HALF || self.tail_is_at(text, at + 2 * HALF)))
    }

    #[inline(never)]
    fn tail_is_at(&self, text: &[u8], at: usize) -> bool {
        text.get(at..).is_some_and(|rest| rest.starts_with(&self.tail))
    }
}

impl Keys {
    pub(super) fn new() -> Self {
        Self { joints: vec![Joint::none(), Joint::none()], known: HashMap::new() }
    }

    /// What stands at `at`, which is behind the value of `previous`; `None` if it is not understood.
    #[inline(always)]
    pub(super) fn next(
        &mut self,
        text: &Text<'_>,
        at: usize,
        previous: u16,
        names: &HashMap<Box<str>, usize>,
    ) -> Option<Next> {
        let joint = self.joints[usize::from(previous)].next[0];
        let expected = &self.joints[usize::from(joint)];
        if expected.is_at(text.bytes, at) {
            return Some(Next::Member { joint, field: expected.field, value: at + expected.len });
        }
        if previous != START && text.get(at) == Some(&b'}') {
            return Some(Next::End(at + 1));
        }
        self.find(text, at, previous, names)
    }

    /// The same, if it is not what was expected.
    #[inline(never)]
    fn find(
        &mut self,
        text: &Text<'_>,
        at: usize,
        previous: u16,
        names: &HashMap<Box<str>, usize>,
    ) -> Option<Next> {
        for way in 1..WAYS {
            let joint = self.joints[usize::from(previous)].next[way];
            let candidate = &self.joints[usize::from(joint)];
            if candidate.is_at(text.bytes, at) {
                let found = Next::Member { joint, field: candidate.field, value: at + candidate.len };
                self.joints[usize::from(previous)].next[..=way].rotate_right(1);
                return Some(found);
            }
        }
        let mut pos = scan::skip_space(text.bytes, at);
        match (text.get(pos)?, previous) {
            (b'{', START) => {
                pos = scan::skip_space(text.bytes, pos + 1);
                if text.get(pos) == Some(&b'}') {
                    return Some(Next::End(pos + 1));
                }
            }
            (b'}', 1..) => return Some(Next::End(pos + 1)),
            (b',', 1..) => pos = scan::skip_space(text.bytes, pos + 1),
            _ => return None,
        }
        if text.get(pos) != Some(&b'"') {
            return None;
        }
        // Keys with escapes are left to the general path.
        let stop = text.stops.next(pos + 1);
        let colon = scan::skip_space(text.bytes, stop + 1);
        if text.get(stop) != Some(&b'"') || text.get(colon) != Some(&b':') {
            return None;
        }
        let value = scan::skip_space(text.bytes, colon + 1);
        let key = std::str::from_utf8(text.bytes.get(pos + 1..stop)?).ok()?;
        let field = names.get(key).map_or(Some(NO_FIELD), |field| u32::try_from(*field).ok())?;
        let joint = self.learn(text.bytes.get(at..value)?, field, previous);
        Some(Next::Member { joint, field, value })
    }

    /// Remembers `bytes` as what follows `previous`.
    fn learn(&mut self, bytes: &[u8], field: u32, mut previous: u16) -> u16 {
        if bytes.len() > JOINT_BYTES_MAX {
            return UNKNOWN;
        }
        let joint = match self.known.get(bytes) {
            Some(joint) => *joint,
            None => {
                if self.joints.len() >= JOINTS_MAX {
                    *self = Self::new();
                    previous = UNKNOWN;
                }
                let joint = self.joints.len() as u16;
                self.joints.push(Joint::new(bytes, field));
                self.known.insert(bytes.into(), joint);
                joint
            }
        };
        let next = &mut self.joints[usize::from(previous)].next;
        next.rotate_right(1);
        next[0] = joint;
        joint
    }
}
