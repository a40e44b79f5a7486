//! Sums of floating point numbers that are exact: what was added can be taken away again, and nothing of it is left. A sum
//! kept as an `f64` would drift, and would depend on the order in which rows come.

/// How many bits a digit has.
const DIGIT_BITS: i32 = 32;
const DIGIT: i128 = 1 << DIGIT_BITS;

/// A sum, as a number with digits to the base 2³²; rounded only when it is read.
///
/// Each number adds to few digits what depends on that number alone. A digit is less than 2³² times how many numbers there
/// are, so it cannot overflow; and when all numbers are taken away again, every digit is zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ExactSum {
    /// By place, ascending, none zero: a digit at place `p` counts 2³²ᵖ.
    digits: Vec<(i32, i128)>,
    nans: i64,
    infinities: i64,
    negative_infinities: i64,
}

impl ExactSum {
    /// Adds `x` as often as `times` says, which may be negative.
    pub(super) fn add(&mut self, x: f64, times: i64) {
        self.add_product(x, 1.0, times);
    }

    /// Adds `x * y`, not rounded.
    pub(super) fn add_product(&mut self, x: f64, y: f64, times: i64) {
        if !x.is_finite() || !y.is_finite() {
            let product = x * y;
            let count = match () {
                () if product.is_nan() => &mut self.nans,
                () if product > 0.0 => &mut self.infinities,
                () => &mut self.negative_infinities,
            };
            *count += times;
            return;
        }
        let (x, y) = (Parts::of(x), Parts::of(y));
        let times = if x.is_negative == y.is_negative { times } else { -times };
        self.add_parts(u128::from(x.mantissa) * u128::from(y.mantissa), x.exponent + y.exponent, times);
    }

    /// Adds `other * x`; only what is finite in `other`.
    pub(super) fn add_scaled(&mut self, other: &Self, x: f64) {
        let x = Parts::of(x);
        let (is_negative, digits) = other.normalised();
        let times = if is_negative == x.is_negative { 1 } else { -1 };
        for (place, digit) in digits {
            self.add_parts(
                u128::from(digit) * u128::from(x.mantissa),
                x.exponent + DIGIT_BITS * place,
                times,
            );
        }
    }

    /// Adds `mantissa * 2^exponent`.
    fn add_parts(&mut self, mantissa: u128, exponent: i32, times: i64) {
        if mantissa == 0 {
            return;
        }
        let zeros = mantissa.trailing_zeros();
        let (mantissa, exponent) = (mantissa >> zeros, exponent + zeros.cast_signed());
        let (mut place, shift) = (exponent.div_euclid(DIGIT_BITS), exponent.rem_euclid(DIGIT_BITS));
        self.add_digit(place, (mantissa << shift) as u32, times);
        let mut rest = mantissa >> (DIGIT_BITS - shift);
        while rest != 0 {
            place += 1;
            self.add_digit(place, rest as u32, times);
            rest >>= DIGIT_BITS;
        }
    }

    fn add_digit(&mut self, place: i32, digit: u32, times: i64) {
        if digit == 0 {
            return;
        }
        let value = i128::from(digit) * i128::from(times);
        match self.digits.binary_search_by_key(&place, |(place, _)| *place) {
            Ok(idx) => {
                self.digits[idx].1 += value;
                if self.digits[idx].1 == 0 {
                    self.digits.remove(idx);
                }
            }
            Err(idx) => self.digits.insert(idx, (place, value)),
        }
    }

    /// The sum, rounded to the nearest.
    pub(super) fn value(&self) -> f64 {
        match (self.nans, self.infinities, self.negative_infinities) {
            (0, 0, 0) => self.finite(),
            (0, _, 0) => f64::INFINITY,
            (0, 0, _) => f64::NEG_INFINITY,
            _ => f64::NAN,
        }
    }

    fn finite(&self) -> f64 {
        let (is_negative, mut digits) = self.normalised();
        let Some((top, highest)) = digits.pop() else { return 0.0 };
        // Three digits have more bits than an `f64`; of the others it matters only whether there is something.
        let mut bits = u128::from(highest) << (2 * DIGIT_BITS);
        for (place, digit) in digits {
            match top - place {
                1 => bits |= u128::from(digit) << DIGIT_BITS,
                2 => bits |= u128::from(digit),
                _ => bits |= 1,
            }
        }
        let value = scaled(bits as f64, DIGIT_BITS * (top - 2));
        if is_negative { -value } else { value }
    }

    /// The sign, and digits less than the base, by place, ascending, none zero.
    fn normalised(&self) -> (bool, Vec<(i32, u32)>) {
        let carried = |sign: i128| {
            let (mut digits, mut carry, mut next) = (Vec::with_capacity(self.digits.len() + 3), 0, 0);
            let mut push = |place: i32, value: i128| {
                let digit = value.rem_euclid(DIGIT) as u32;
                digits.extend((digit != 0).then_some((place, digit)));
                value.div_euclid(DIGIT)
            };
            for (place, digit) in &self.digits {
                while carry != 0 && next < *place {
                    carry = push(next, carry);
                    next += 1;
                }
                carry = push(*place, sign * digit + carry);
                next = place + 1;
            }
            // What is carried out at the top is -1 for ever if the sum is negative.
            while carry != 0 && carry != -1 {
                carry = push(next, carry);
                next += 1;
            }
            (carry == -1, digits)
        };
        match carried(1) {
            (false, digits) => (false, digits),
            (true, _) => (true, carried(-1).1),
        }
    }

    /// About how many bytes it takes beside itself.
    pub(super) fn n_bytes(&self) -> usize {
        self.digits.capacity() * size_of::<(i32, i128)>()
    }
}

/// A finite number: `mantissa * 2^exponent`.
struct Parts {
    is_negative: bool,
    mantissa: u64,
    exponent: i32,
}

impl Parts {
    fn of(x: f64) -> Self {
        let bits = x.to_bits();
        let (exponent, fraction) = ((bits >> 52 & 0x7ff) as i32, bits & ((1 << 52) - 1));
        let is_negative = x.is_sign_negative();
        if exponent == 0 {
            return Self { is_negative, mantissa: fraction, exponent: -1074 };
        }
        Self { is_negative, mantissa: fraction | 1 << 52, exponent: exponent - 1075 }
    }
}

/// `x * 2^exponent`.
fn scaled(mut x: f64, mut exponent: i32) -> f64 {
    while exponent != 0 && x != 0.0 && x.is_finite() {
        let step = exponent.clamp(-1000, 1000);
        x *= f64::from_bits(((1023 + step) as u64) << 52);
        exponent -= step;
    }
    x
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum(values: &[f64]) -> ExactSum {
        let mut sum = ExactSum::default();
        values.iter().for_each(|value| sum.add(*value, 1));
        sum
    }

    #[test]
    fn what_rounding_would_lose_is_there() {
        assert_eq!(sum(&[1e300, 1.0, -1e300]).value(), 1.0);
        assert_eq!(sum(&[1e16, 1.0, 1.0]).value(), 1e16 + 2.0);
        assert_eq!(sum(&[f64::MIN_POSITIVE, -f64::MIN_POSITIVE / 2.0]).value(), f64::MIN_POSITIVE / 2.0);
        assert_eq!(sum(&[0.1; 10]).value(), 1.0);
        assert_eq!(sum(&[f64::MAX, f64::MAX, -f64::MAX]).value(), f64::MAX);
        assert_eq!(sum(&[f64::MAX, f64::MAX]).value(), f64::INFINITY);
    }

    #[test]
    fn what_is_no_number_goes_away_again() {
        let mut all = sum(&[1.5, f64::INFINITY, f64::NAN]);
        assert!(all.value().is_nan());
        all.add(f64::NAN, -1);
        assert_eq!(all.value(), f64::INFINITY);
        all.add(f64::NEG_INFINITY, 1);
        assert!(all.value().is_nan());
        all.add(f64::NEG_INFINITY, -1);
        all.add(f64::INFINITY, -1);
        assert_eq!(all, sum(&[1.5]));
    }

    fn arb_number() -> impl Strategy<Value = f64> {
        any::<f64>().prop_filter("finite", |x| x.is_finite())
    }

    proptest! {
        #[test]
        fn a_number_is_itself(x in arb_number()) {
            prop_assert_eq!(sum(&[x]).value(), x);
        }

        #[test]
        fn two_numbers_are_rounded_once(x in arb_number(), y in arb_number()) {
            prop_assert_eq!(sum(&[x, y]).value(), x + y);
            let mut product = ExactSum::default();
            product.add_product(x, y, 1);
            if (x * y).is_normal() {
                prop_assert_eq!(product.value(), x * y);
            }
        }

        #[test]
        fn nothing_is_left_of_what_is_taken_away(
            kept in prop::collection::vec(arb_number(), 0..20),
            gone in prop::collection::vec((arb_number(), 1..5i64), 0..20),
        ) {
            let expected = sum(&kept);
            let mut all = ExactSum::default();
            gone.iter().for_each(|(x, times)| all.add(*x, *times));
            kept.iter().rev().for_each(|x| all.add(*x, 1));
            gone.iter().for_each(|(x, times)| all.add(*x, -*times));
            prop_assert_eq!(&all, &expected);
            let mut negated = ExactSum::default();
            negated.add_scaled(&all, -0.5);
            prop_assert_eq!(negated.value(), if all.value().is_infinite() { negated.value() } else { -all.value() / 2.0 });
        }
    }
}
