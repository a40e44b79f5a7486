//! Looks at 32 bytes at once: where a string stops, and how far two texts agree.
//!
//! On x86-64 with SSE2, which every such processor has; elsewhere with 8 bytes in a register. All loads are of whole
//! arrays that were cut from a slice, so that nothing is read out of bounds; at the end of a text the missing bytes are
//! zeros, which are control characters and no digits.

/// How many bytes are looked at.
pub(super) const WIDTH: usize = 32;

/// The position of the first quote, backslash or control character from `at` on, or the end of `text`.
#[inline(always)]
pub(super) fn string_stop(text: &[u8], mut at: usize) -> usize {
    loop {
        let n = match block::<WIDTH>(text, at) {
            Some(block) => stop_in(block),
            None => return string_stop_at_end(text, at),
        };
        at += n;
        if n < WIDTH {
            return at;
        }
    }
}

#[cold]
#[inline(never)]
fn string_stop_at_end(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    at.min(text.len()) + stop_in(&padded::<WIDTH>(rest)).min(rest.len())
}

/// How many bytes at the start of `text[at..]` are those of `expected`.
#[inline(always)]
pub(super) fn agreement(text: &[u8], at: usize, expected: &[u8; WIDTH]) -> usize {
    match block::<WIDTH>(text, at) {
        Some(block) => agreement_of(block, expected),
        None => agreement_at_end(text, at, expected),
    }
}

#[cold]
#[inline(never)]
fn agreement_at_end(text: &[u8], at: usize, expected: &[u8; WIDTH]) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    agreement_of(&padded(rest), expected).min(rest.len())
}

/// The number that the digits at the start of `text[at..]` make, eight at most, and how many they are.
#[inline(always)]
pub(super) fn digits(text: &[u8], at: usize) -> (u64, usize) {
    let word = match block::<8>(text, at) {
        Some(block) => u64::from_le_bytes(*block),
        None => u64::from_le_bytes(padded(text.get(at..).unwrap_or_default())),
    };
    // A digit's byte becomes its value. Whatever is above 9 sets its high bit, and the first that does is exact.
    let values = word ^ 0x3030_3030_3030_3030;
    let others = (values.wrapping_add(0x7676_7676_7676_7676) | values) & 0x8080_8080_8080_8080;
    let n = (others.trailing_zeros() / 8) as usize;
    if n == 0 {
        return (0, 0);
    }
    // The first digit is the lowest byte; zeros move in before it. Then pairs, fours, and eight are summed up.
    let aligned = values << (64 - 8 * n as u32);
    let pairs = aligned.wrapping_mul(10).wrapping_add(aligned >> 8);
    let high = (pairs & 0x0000_00ff_0000_00ff).wrapping_mul(0x000f_4240_0000_0064);
    let low = ((pairs >> 16) & 0x0000_00ff_0000_00ff).wrapping_mul(0x0000_2710_0000_0001);
    (high.wrapping_add(low) >> 32, n)
}

#[inline(always)]
fn block<const N: usize>(text: &[u8], at: usize) -> Option<&[u8; N]> {
    text.get(at..)?.first_chunk::<N>()
}

/// The first bytes of `rest`, then zeros.
fn padded<const N: usize>(rest: &[u8]) -> [u8; N] {
    let mut block = [0; N];
    let n = rest.len().min(N);
    block[..n].copy_from_slice(&rest[..n]);
    block
}

#[cfg(target_arch = "x86_64")]
use self::sse2::{agreement_of, stop_in};
#[cfg(not(target_arch = "x86_64"))]
use self::words::{agreement_of, stop_in};

#[cfg(target_arch = "x86_64")]
mod sse2 {
    #![allow(unsafe_code, reason = "vector registers are loaded from arrays")]

    use std::arch::x86_64::{
        __m128i, _mm_cmpeq_epi8, _mm_loadu_si128, _mm_min_epu8, _mm_movemask_epi8, _mm_or_si128,
        _mm_set1_epi8,
    };

    use super::WIDTH;

    #[inline(always)]
    fn load(block: &[u8; WIDTH]) -> [__m128i; 2] {
        let begin = block.as_ptr().cast::<__m128i>();
        // SAFETY: the array is readable for 32 bytes, two registers; `loadu` asks for no alignment; every x86-64
        // processor has SSE2.
        unsafe { [_mm_loadu_si128(begin), _mm_loadu_si128(begin.add(1))] }
    }

    /// One bit per byte in which `test` is not zero.
    #[inline(always)]
    fn mask(halves: [__m128i; 2]) -> u32 {
        // SAFETY: every x86-64 processor has SSE2.
        let bits = halves.map(|half| unsafe { _mm_movemask_epi8(half) } as u32);
        bits[0] | bits[1] << 16
    }

    /// The index of the first quote, backslash or control character, or the width.
    #[inline(always)]
    pub(super) fn stop_in(block: &[u8; WIDTH]) -> usize {
        let stops = load(block).map(|half| {
            // SAFETY: every x86-64 processor has SSE2.
            unsafe {
                let quote = _mm_cmpeq_epi8(half, _mm_set1_epi8(b'"' as i8));
                let backslash = _mm_cmpeq_epi8(half, _mm_set1_epi8(b'\\' as i8));
                let control = _mm_cmpeq_epi8(_mm_min_epu8(half, _mm_set1_epi8(0x1f)), half);
                _mm_or_si128(_mm_or_si128(quote, backslash), control)
            }
        });
        mask(stops).trailing_zeros() as usize
    }

    /// How many bytes agree from the start on.
    #[inline(always)]
    pub(super) fn agreement_of(block: &[u8; WIDTH], expected: &[u8; WIDTH]) -> usize {
        let (block, expected) = (load(block), load(expected));
        // SAFETY: every x86-64 processor has SSE2.
        let equal = unsafe { [_mm_cmpeq_epi8(block[0], expected[0]), _mm_cmpeq_epi8(block[1], expected[1])] };
        (!mask(equal)).trailing_zeros() as usize
    }
}

/// The same with 8 bytes at once.
#[cfg(any(test, not(target_arch = "x86_64")))]
mod words {
    use super::WIDTH;

    const LOW: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;

    fn words(block: &[u8; WIDTH]) -> impl Iterator<Item = u64> {
        block.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")))
    }

    /// The high bit of each byte that is zero, exact up to the first such byte.
    fn zeros(word: u64) -> u64 {
        word.wrapping_sub(LOW) & !word & HIGH
    }

    pub(super) fn stop_in(block: &[u8; WIDTH]) -> usize {
        first(words(block).map(|word| {
            let control = word.wrapping_sub(LOW * 0x20) & !word & HIGH;
            zeros(word ^ (LOW * u64::from(b'"'))) | zeros(word ^ (LOW * u64::from(b'\\'))) | control
        }))
    }

    pub(super) fn agreement_of(block: &[u8; WIDTH], expected: &[u8; WIDTH]) -> usize {
        first(words(block).zip(words(expected)).map(|(word, expected)| word ^ expected))
    }

    /// The index of the byte with the lowest bit that is set, over all words.
    fn first(marks: impl Iterator<Item = u64>) -> usize {
        let mut n = 0;
        for mark in marks {
            if mark != 0 {
                return n + (mark.trailing_zeros() / 8) as usize;
            }
            n += 8;
        }
        n
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_stop(byte: u8) -> bool {
        byte == b'"' || byte == b'\\' || byte < 0x20
    }

    proptest! {
        #[test]
        fn strings_stop_where_a_byte_loop_stops(
            text in prop::collection::vec(prop_oneof![8 => 0x20_u8..0x80, 8 => 0x80_u8.., 1 => any::<u8>()], 0..100),
            at in 0_usize..110,
        ) {
            let expect = text.get(at..).map_or(text.len(), |rest| {
                at + rest.iter().position(|byte| is_stop(*byte)).unwrap_or(rest.len())
            });
            prop_assert_eq!(string_stop(&text, at), expect);
        }

        #[test]
        fn both_ways_agree(mut block: [u8; WIDTH], expected: [u8; WIDTH], n in 0..=WIDTH, printable: bool) {
            if printable {
                block = block.map(|byte| byte | 0x20);
            }
            prop_assert_eq!(stop_in(&block), words::stop_in(&block));
            block[..n].copy_from_slice(&expected[..n]);
            let n_agree = agreement_of(&block, &expected);
            prop_assert!(n_agree >= n);
            prop_assert_eq!(n_agree, words::agreement_of(&block, &expected));
            prop_assert_eq!(agreement(&block[..n], 0, &expected), n);
        }

        #[test]
        fn digits_are_summed_up(text in "[0-9]{0,10}[^0-9].{0,3}", at in 0_usize..12) {
            let run: String = text.chars().skip(at).take_while(char::is_ascii_digit).take(8).collect();
            let found = digits(text.as_bytes(), at);
            prop_assert_eq!(found, (run.parse().unwrap_or(0), run.len()));
        }
    }
}
