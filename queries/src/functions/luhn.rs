//! `luhn_valid`: could this be a card number?

use std::sync::Arc;

use arrow::array::BooleanArray;
use arrow::datatypes::DataType;

use super::function::{Function, Kind, Parameters, any};

/// `luhn_valid(text)`.
pub(super) static LUHN_VALID: Function = Function {
    name: "luhn_valid",
    signature: "luhn_valid(text) → boolean",
    doc: "Whether a text is 12 to 19 digits with a valid Luhn check digit, as payment card numbers are. Spaces and \
          dashes between digits are passed over; anything else makes it false.",
    example: ("luhn_valid('4111 1111 1111 1111')", "true"),
    parameters: Parameters { required: &[Kind::Text], optional: &[], more: None },
    returns: |_| DataType::Boolean,
    check: any,
    evaluate: |arguments| {
        let texts = arguments.text(0)?;
        let valid = |row| texts.get(row).map(is_valid);
        Ok(Arc::new((0..arguments.rows).map(valid).collect::<BooleanArray>()))
    },
};

fn is_valid(text: &str) -> bool {
    let mut digits = [0u8; 19];
    let mut count = 0;
    for byte in text.bytes() {
        match byte {
            b'0'..=b'9' if count < digits.len() => {
                digits[count] = byte - b'0';
                count += 1;
            }
            b' ' | b'-' => {}
            _ => return false,
        }
    }
    count >= 12 && checksum(&digits[..count])
}

/// Whether digits (values 0 to 9) end in their Luhn check digit.
pub(super) fn checksum(digits: &[u8]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(place, &digit)| match u32::from(digit) {
            digit if place % 2 == 0 => digit,
            digit if digit > 4 => digit * 2 - 9,
            digit => digit * 2,
        })
        .sum();
    sum.is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use crate::functions::testing::eval;

    #[test]
    fn card_numbers() {
        for (text, expected) in [
            ("4111111111111111", "true"),
            ("4111-1111-1111-1111", "true"),
            ("378282246310005", "true"),
            ("6011111111111117", "true"),
            ("5555555555554444", "true"),
            ("4111111111111112", "false"),
            ("4111111111111111x", "false"),
            ("411111111111", "false"),
            ("", "false"),
            ("00000000000000000000", "false"),
            ("４１１１１１１１１１１１１１１１", "false"),
        ] {
            assert_eq!(eval(&format!("luhn_valid('{text}')")), expected, "{text}");
        }
        assert_eq!(eval("luhn_valid(4111111111111111)"), "true");
        assert_eq!(eval("luhn_valid(NULL)"), "null");
    }

    #[test]
    fn every_single_wrong_digit_is_found() {
        let good = b"4111111111111111";
        for place in 0..good.len() {
            for digit in b'0'..=b'9' {
                let mut bad = *good;
                bad[place] = digit;
                let digits: Vec<u8> = bad.iter().map(|byte| byte - b'0').collect();
                assert_eq!(super::checksum(&digits), bad == *good);
            }
        }
    }
}
