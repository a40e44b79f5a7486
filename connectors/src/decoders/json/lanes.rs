//! Many bytes at once: where strings stop, how far two texts agree, what number digits make.
//!
//! With SSE2, which every x86-64 processor has, and AVX2 if there is; elsewhere with 8 bytes in a register. All loads are of whole arrays that
//! were cut from a slice, so that nothing is read out of bounds; at the end of a text the missing bytes are zeros, which
//! are control characters and no digits.

use std::ops::Range;

/// How many bytes are looked at.
pub(super) const WIDTH: usize = 32;

/// Where strings stop: one bit per byte of a part of the chunk, set for quotes, backslashes and control characters.
///
/// Made for many messages ahead, in a loop in which no step waits for another. Finding the end of a string is then a
/// matter of one load and a shift, whatever its length; comparing at the string itself would make each value wait for
/// the comparisons of all before it.
#[derive(Default)]
pub(super) struct Stops {
    /// The first byte that the bits are for.
    begin: usize,
    bits: Vec<u8>,
}

/// As many bits as [`StopBits::next`] sees for sure.
const BITS_SEEN: usize = 57;

impl Stops {
    /// Finds them in this range of `text`.
    pub(super) fn find(&mut self, text: &[u8], range: Range<usize>) {
        self.begin = range.start;
        self.bits.clear();
        let (blocks, rest) = text[range].as_chunks::<WIDTH>();
        self.bits.reserve(WIDTH / 8 * (blocks.len() + 3));
        append_stops(blocks, &mut self.bits);
        append_stops(&[padded(rest)], &mut self.bits);
        // Behind the end there are only stops.
        self.bits.extend([0xff; 8]);
    }

    /// Gives back memory above `n_bytes_max` bytes.
    pub(super) fn shrink(&mut self, n_bytes_max: usize) {
        self.bits.clear();
        self.bits.shrink_to(n_bytes_max);
    }

    /// The same to look things up in.
    pub(super) fn bits(&self) -> StopBits<'_> {
        StopBits { begin: self.begin, bits: &self.bits }
    }
}

/// [`Stops`], borrowed.
#[derive(Clone, Copy)]
pub(super) struct StopBits<'a> {
    begin: usize,
    bits: &'a [u8],
}

impl StopBits<'_> {
    /// The position of the first stop from `at` on. Outside the range and at its end it may be any that is not below
    /// `at`.
    #[inline(always)]
    pub(super) fn next(&self, at: usize) -> usize {
        let bit = at.wrapping_sub(self.begin);
        let Some(bits) = block::<8>(self.bits, bit / 8) else { return at };
        let bits = u64::from_le_bytes(*bits) >> (bit % 8);
        if bits == 0 { self.next_far(at + BITS_SEEN) } else { at + bits.trailing_zeros() as usize }
    }

    #[inline(never)]
    fn next_far(&self, mut at: usize) -> usize {
        loop {
            let bit = at.wrapping_sub(self.begin);
            let Some(bits) = block::<8>(self.bits, bit / 8) else { return at };
            let bits = u64::from_le_bytes(*bits) >> (bit % 8);
            if bits != 0 {
                return at + bits.trailing_zeros() as usize;
            }
            at += BITS_SEEN;
        }
    }
}

/// So many bytes are compared at once.
pub(super) const HALF: usize = 16;

/// Whether the bytes at `at` are those of `expected` wherever `bits` has a bit; never if it has one beyond the bytes.
/// Behind the end of the text there are zeros.
#[inline(always)]
pub(super) fn agrees(text: &[u8], at: usize, expected: &[u8; HALF], bits: u32) -> bool {
    match block::<HALF>(text, at) {
        Some(block) => agreement(block, expected) & bits == bits,
        None => agrees_at_end(text, at, expected, bits),
    }
}

#[cold]
#[inline(never)]
fn agrees_at_end(text: &[u8], at: usize, expected: &[u8; HALF], bits: u32) -> bool {
    agreement(&padded(text.get(at..).unwrap_or_default()), expected) & bits == bits
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
use self::vectors::{agreement, append_stops};
#[cfg(not(target_arch = "x86_64"))]
use self::words::{agreement, append_stops};

#[cfg(target_arch = "x86_64")]
mod vectors {
    #![allow(unsafe_code, reason = "vector registers are loaded from arrays")]

    use std::arch::x86_64::{
        __m128i, __m256i, _mm_cmpeq_epi8, _mm_loadu_si128, _mm_min_epu8, _mm_movemask_epi8, _mm_or_si128,
        _mm_set1_epi8, _mm256_cmpeq_epi8, _mm256_loadu_si256, _mm256_min_epu8, _mm256_movemask_epi8,
        _mm256_or_si256, _mm256_set1_epi8,
    };

    use super::{HALF, WIDTH};

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

    /// Appends one bit per byte, set for quotes, backslashes and control characters.
    pub(super) fn append_stops(blocks: &[[u8; WIDTH]], bits: &mut Vec<u8>) {
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            unsafe { append_stops_avx2(blocks, bits) }
        } else {
            append_stops_sse2(blocks, bits);
        }
    }

    pub(super) fn append_stops_sse2(blocks: &[[u8; WIDTH]], bits: &mut Vec<u8>) {
        bits.extend(blocks.iter().flat_map(|block| stops_of(block).to_le_bytes()));
    }

    #[target_feature(enable = "avx2")]
    fn append_stops_avx2(blocks: &[[u8; WIDTH]], bits: &mut Vec<u8>) {
        let [quote, backslash, control] = [b'"', b'\\', 0x1f].map(|byte| _mm256_set1_epi8(byte as i8));
        let begin = bits.len();
        bits.resize(begin + 4 * blocks.len(), 0);
        for (block, bits) in blocks.iter().zip(bits[begin..].as_chunks_mut::<4>().0) {
            // SAFETY: the array is readable for 32 bytes, and `loadu` asks for no alignment.
            let block = unsafe { _mm256_loadu_si256(block.as_ptr().cast::<__m256i>()) };
            let stops = _mm256_or_si256(
                _mm256_or_si256(_mm256_cmpeq_epi8(block, quote), _mm256_cmpeq_epi8(block, backslash)),
                _mm256_cmpeq_epi8(_mm256_min_epu8(block, control), block),
            );
            *bits = _mm256_movemask_epi8(stops).to_le_bytes();
        }
    }

    #[inline(always)]
    fn stops_of(block: &[u8; WIDTH]) -> u32 {
        mask(load(block).map(|half| {
            // SAFETY: every x86-64 processor has SSE2.
            unsafe {
                let quote = _mm_cmpeq_epi8(half, _mm_set1_epi8(b'"' as i8));
                let backslash = _mm_cmpeq_epi8(half, _mm_set1_epi8(b'\\' as i8));
                let control = _mm_cmpeq_epi8(_mm_min_epu8(half, _mm_set1_epi8(0x1f)), half);
                _mm_or_si128(_mm_or_si128(quote, backslash), control)
            }
        }))
    }

    /// One bit per byte in which both agree.
    #[inline(always)]
    pub(super) fn agreement(block: &[u8; HALF], expected: &[u8; HALF]) -> u32 {
        // SAFETY: the arrays are readable for 16 bytes, one register; `loadu` asks for no alignment; every x86-64
        // processor has SSE2.
        unsafe {
            let block = _mm_loadu_si128(block.as_ptr().cast::<__m128i>());
            let expected = _mm_loadu_si128(expected.as_ptr().cast::<__m128i>());
            _mm_movemask_epi8(_mm_cmpeq_epi8(block, expected)) as u32
        }
    }
}

/// The same with 8 bytes at once.
#[cfg(any(test, not(target_arch = "x86_64")))]
mod words {
    use super::{HALF, WIDTH};

    const ONES: u64 = 0x0101_0101_0101_0101;

    fn words(block: &[u8]) -> impl Iterator<Item = u64> {
        block.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word))
    }

    /// One bit per byte that is zero.
    fn zeros(word: u64) -> u32 {
        let high = !(((word & (ONES * 0x7f)) + ONES * 0x7f) | word | (ONES * 0x7f));
        // The product moves bit `8 i` to bit `56 + i`.
        ((high >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u32
    }

    pub(super) fn append_stops(blocks: &[[u8; WIDTH]], bits: &mut Vec<u8>) {
        bits.extend(words(blocks.as_flattened()).map(|word| {
            let quote = zeros(word ^ (ONES * u64::from(b'"')));
            let backslash = zeros(word ^ (ONES * u64::from(b'\\')));
            (quote | backslash | zeros(word & (ONES * 0xe0))) as u8
        }));
    }

    pub(super) fn agreement(block: &[u8; HALF], expected: &[u8; HALF]) -> u32 {
        let equal = words(block).zip(words(expected)).map(|(word, expected)| zeros(word ^ expected));
        equal.enumerate().fold(0, |bits, (idx, equal)| bits | equal << (8 * idx))
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
            text in prop::collection::vec(prop_oneof![40 => 0x23_u8..0x5c, 20 => 0x80_u8.., 1 => any::<u8>()], 0..400),
            begin in 0_usize..100,
            at in 0_usize..400,
        ) {
            let (begin, at) = (begin.min(text.len()), begin + at);
            let mut stops = Stops::default();
            stops.find(&text, begin..text.len());
            let expect = text.get(at..).and_then(|rest| rest.iter().position(|byte| is_stop(*byte)));
            match expect {
                Some(n) => prop_assert_eq!(stops.bits().next(at), at + n),
                None => prop_assert!(stops.bits().next(at) >= at.min(text.len())),
            }
        }

        #[test]
        fn all_ways_agree(mut block: [u8; WIDTH], printable: bool) {
            if printable {
                block = block.map(|byte| byte | 0x20);
            }
            let (mut ours, mut bytewise) = ([vec![], vec![], vec![]], vec![0; WIDTH / 8]);
            append_stops(&[block], &mut ours[0]);
            words::append_stops(&[block], &mut ours[1]);
            #[cfg(target_arch = "x86_64")]
            vectors::append_stops_sse2(&[block], &mut ours[2]);
            for (idx, byte) in block.into_iter().enumerate() {
                bytewise[idx / 8] |= u8::from(is_stop(byte)) << (idx % 8);
            }
            prop_assert!(ours.iter().all(|bits| *bits == bytewise || (bits.is_empty() && !cfg!(target_arch = "x86_64"))));
        }

        #[test]
        fn agreement_is_of_the_bytes_asked_for(block: [u8; HALF], mut expected: [u8; HALF], n in 0..=HALF) {
            expected[..n].copy_from_slice(&block[..n]);
            let bytewise = (0..HALF).fold(0, |bits, idx| bits | u32::from(block[idx] == expected[idx]) << idx);
            prop_assert_eq!(agreement(&block, &expected), bytewise);
            prop_assert_eq!(words::agreement(&block, &expected), bytewise);
            let bits = (1 << n) - 1;
            prop_assert!(agrees(&block, 0, &expected, bits) && agrees(&block[..n], 0, &expected, bits));
            prop_assert!(!agrees(&block, 0, &expected, 1 << HALF));
        }

        #[test]
        fn digits_are_summed_up(text in "[0-9]{0,10}[^0-9].{0,3}", at in 0_usize..12) {
            let run = text.bytes().skip(at).take_while(u8::is_ascii_digit).take(8);
            let run: String = run.map(char::from).collect();
            let found = digits(text.as_bytes(), at);
            prop_assert_eq!(found, (run.parse().unwrap_or(0), run.len()));
        }
    }
}
