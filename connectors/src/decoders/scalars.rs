//! Scalars from text that is cut out of lines: addresses and numbers.

use std::net::Ipv6Addr;

/// Whether `text` is an IPv4 or IPv6 address, as the standard library reads them.
#[inline]
pub(crate) fn is_ip(text: &str) -> bool {
    is_ipv4(text.as_bytes()) || (text.len() <= 45 && text.contains(':') && text.parse::<Ipv6Addr>().is_ok())
}

#[inline]
fn is_ipv4(text: &[u8]) -> bool {
    if !(7..=15).contains(&text.len()) {
        return false;
    }
    let (mut n_dots, mut n_digits, mut number) = (0, 0, 0_u32);
    for byte in text {
        if byte.is_ascii_digit() {
            // No leading zeros: some readers take them for octal.
            if n_digits > 0 && number == 0 {
                return false;
            }
            number = number * 10 + u32::from(byte - b'0');
            n_digits += 1;
            if number > 255 {
                return false;
            }
        } else if *byte == b'.' && n_digits > 0 {
            n_dots += 1;
            (n_digits, number) = (0, 0);
        } else {
            return false;
        }
    }
    n_dots == 3 && n_digits > 0
}

/// A whole number.
#[inline]
pub(crate) fn integer(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    if bytes.is_empty() || bytes.len() > 18 {
        return text.parse().ok();
    }
    let mut number = 0;
    for byte in bytes {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return text.parse().ok();
        }
        number = number * 10 + i64::from(digit);
    }
    Some(number)
}

/// A finite number, the nearest to what is written.
#[inline]
pub(crate) fn float(text: &str) -> Option<f64> {
    const POWERS: [f64; 16] =
        [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15];
    let bytes = text.as_bytes();
    let (mut number, mut n_fraction, mut in_fraction) = (0_u64, 0, false);
    // Both the digits and the power are exact, so that one division rounds once.
    let plain = (1..=16).contains(&bytes.len())
        && bytes[0] != b'.'
        && bytes[bytes.len() - 1] != b'.'
        && bytes.iter().all(|byte| match byte {
            b'0'..=b'9' => {
                number = number * 10 + u64::from(byte - b'0');
                n_fraction += usize::from(in_fraction);
                true
            }
            b'.' if !in_fraction => {
                in_fraction = true;
                true
            }
            _ => false,
        });
    if plain && (in_fraction || bytes.len() <= 15) {
        return Some(number as f64 / POWERS[n_fraction]);
    }
    let decimal = bytes.iter().all(|b| matches!(b, b'0'..=b'9' | b'.' | b'-' | b'+' | b'e' | b'E'));
    text.parse().ok().filter(|number: &f64| decimal && number.is_finite())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn addresses_are_the_standard_librarys(text in "[0-9]{1,3}(\\.[0-9]{1,3}){3}|[0-9.:a]{0,18}") {
            prop_assert_eq!(is_ip(&text), text.parse::<std::net::IpAddr>().is_ok());
            prop_assert_eq!(is_ipv4(text.as_bytes()), text.parse::<Ipv4Addr>().is_ok());
        }

        #[test]
        fn any_ipv6_is_an_address(bits in any::<u128>()) {
            prop_assert!(is_ip(&Ipv6Addr::from(bits).to_string()));
        }

        #[test]
        fn numbers_are_the_standard_librarys(text in "[0-9]{0,20}(\\.[0-9]{0,9})?|[-+0-9.eE]{0,8}") {
            prop_assert_eq!(integer(&text), text.parse().ok());
            prop_assert_eq!(float(&text), text.parse().ok().filter(|n: &f64| n.is_finite()));
        }
    }
}
