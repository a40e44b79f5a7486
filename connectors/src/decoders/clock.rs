//! Points in time from fixed-width text.

/// Microseconds of a second.
pub(crate) const SECOND: i64 = 1_000_000;
/// Seconds of a day.
pub(crate) const DAY: i64 = 86_400;

/// Two digits; `None` if they are none.
#[inline]
pub(crate) fn two(tens: u8, ones: u8) -> Option<i64> {
    let (tens, ones) = (tens.wrapping_sub(b'0'), ones.wrapping_sub(b'0'));
    (tens <= 9 && ones <= 9).then_some(i64::from(tens) * 10 + i64::from(ones))
}

/// Days since 1970-01-01 of a date in the proleptic Gregorian calendar; `None` if there is no such day.
#[inline]
pub(crate) fn days_since_epoch(year: i64, month: i64, day: i64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let month_days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 => 28 + i64::from(leap),
        _ => return None,
    };
    if !(1..=month_days).contains(&day) {
        return None;
    }
    // Years begin in March, so that the leap day is a year's last.
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    Some(era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468)
}

/// The year of a day since 1970-01-01.
pub(crate) fn year_of(days: i64) -> i64 {
    let guess = 1970 + days.div_euclid(365).min(days.div_euclid(366));
    (guess..).find(|year| days_since_epoch(year + 1, 1, 1).is_none_or(|next| days < next)).unwrap_or(guess)
}

/// The number of a month from its English short name, `Jan` is 1.
#[inline]
pub(crate) fn month(name: [u8; 3]) -> Option<i64> {
    Some(match &name {
        b"Jan" => 1,
        b"Feb" => 2,
        b"Mar" => 3,
        b"Apr" => 4,
        b"May" => 5,
        b"Jun" => 6,
        b"Jul" => 7,
        b"Aug" => 8,
        b"Sep" => 9,
        b"Oct" => 10,
        b"Nov" => 11,
        b"Dec" => 12,
        _ => return None,
    })
}

/// Seconds since midnight of `hh:mm:ss`.
#[inline]
pub(crate) fn time_of_day(text: [u8; 8]) -> Option<i64> {
    let [h1, h2, b':', m1, m2, b':', s1, s2] = text else { return None };
    let (hour, minute, second) = (two(h1, h2)?, two(m1, m2)?, two(s1, s2)?);
    (hour <= 23 && minute <= 59 && second <= 59).then_some(hour * 3_600 + minute * 60 + second)
}

/// Seconds east of UTC of a sign, hours and minutes.
#[inline]
pub(crate) fn offset(sign: u8, hour: [u8; 2], minute: [u8; 2]) -> Option<i64> {
    let (hour, minute) = (two(hour[0], hour[1])?, two(minute[0], minute[1])?);
    let seconds = hour * 3_600 + minute * 60;
    match sign {
        _ if hour > 23 || minute > 59 => None,
        b'+' => Some(seconds),
        b'-' => Some(-seconds),
        _ => None,
    }
}

/// Microseconds of the last of so many digits of a second.
const MICROS: [i64; 7] = [1_000_000, 100_000, 10_000, 1_000, 100, 10, 1];

/// The time at the start of `text` as RFC 5424 and RFC 3339 both have it, and how many bytes it takes:
/// `YYYY-MM-DDThh:mm:ss[.ffffff](Z|±hh:mm)`. More than six digits of a second are no such time.
#[inline]
pub(crate) fn rfc3339(text: &[u8]) -> Option<(i64, usize)> {
    let (&[y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2, b'T'], rest) = text.split_first_chunk::<11>()? else {
        return None;
    };
    let days = days_since_epoch(two(y1, y2)? * 100 + two(y3, y4)?, two(m1, m2)?, two(d1, d2)?)?;
    let (time, rest) = rest.split_first_chunk::<8>()?;
    let mut seconds = days * DAY + time_of_day(*time)?;
    let (mut micros, mut len) = (0, 19);
    let mut rest = rest;
    if let [b'.', digits @ ..] = rest {
        let mut n_digits = 0;
        while let Some(digit) = digits.get(n_digits).map(|b| b.wrapping_sub(b'0')).filter(|digit| *digit <= 9)
        {
            micros = micros * 10 + i64::from(digit);
            n_digits += 1;
            if n_digits > 6 {
                return None;
            }
        }
        micros *= MICROS[n_digits];
        if n_digits == 0 {
            return None;
        }
        len += 1 + n_digits;
        rest = &digits[n_digits..];
    }
    match *rest {
        [b'Z', ..] => len += 1,
        [sign, h1, h2, b':', m1, m2, ..] => {
            seconds -= offset(sign, [h1, h2], [m1, m2])?;
            len += 6;
        }
        _ => return None,
    }
    Some((seconds * SECOND + micros, len))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_are_checked() {
        let at = 1_704_164_645_000_000;
        for (text, expect) in [
            ("2024-01-02T03:04:05Z", Some((at, 20))),
            ("2024-01-02T03:04:05.25Z and more", Some((at + 250_000, 23))),
            ("2024-01-02T03:04:05.000001+00:00", Some((at + 1, 32))),
            ("2024-01-02T05:34:05+02:30", Some((at, 25))),
            ("2024-02-29T00:00:00Z", Some((1_709_164_800_000_000, 20))),
            ("2023-02-29T00:00:00Z", None),
            ("2024-01-02T03:04:05.0000001Z", None),
            ("2024-01-02T03:04:05.Z", None),
            ("2024-01-02T03:04:60Z", None),
            ("2024-01-02T24:04:00Z", None),
            ("2024-01-02T03:04:05", None),
            ("2024-01-02t03:04:05Z", None),
            ("2024-01-02 03:04:05Z", None),
            ("2024-01-02T03:04:05+24:00", None),
            ("2024-01-02T03:04:05+0000", None),
        ] {
            assert_eq!(rfc3339(text.as_bytes()), expect, "{text}");
        }
    }

    #[test]
    fn years_have_their_days() {
        for year in [1600, 1899, 1900, 1969, 1970, 2000, 2023, 2024, 2100] {
            assert_eq!(year_of(days_since_epoch(year, 1, 1).unwrap()), year);
            assert_eq!(year_of(days_since_epoch(year, 12, 31).unwrap()), year);
        }
    }

    proptest! {
        #[test]
        fn times_are_jiffs(second in -62_135_596_800_i64..253_402_207_200, micro in 0_i64..1_000_000) {
            let micros = second * SECOND + micro;
            let text = jiff::Timestamp::from_microsecond(micros).unwrap().to_string();
            prop_assert_eq!(rfc3339(text.as_bytes()), Some((micros, text.len())));
        }

        #[test]
        fn any_bytes_are_safe(text in "[-0-9TZ:.+]{0,36}") {
            if let Some((micros, len)) = rfc3339(text.as_bytes()) {
                let theirs: jiff::Timestamp = text[..len].parse().unwrap();
                prop_assert_eq!(theirs.as_microsecond(), micros);
            }
        }
    }
}
