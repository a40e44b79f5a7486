//! IP addresses: `cidr_match` and `ip_version`.

use std::net::IpAddr;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int64Array};
use arrow::datatypes::DataType;
use datafusion::common::Result;
use ipnet::IpNet;

use super::function::{Arguments, Constants, Function, Kind, Parameters, any};

/// `cidr_match(ip, network, …)`.
pub(super) static CIDR_MATCH: Function = Function {
    name: "cidr_match",
    signature: "cidr_match(ip text, network text or list, …) → boolean",
    doc: "Whether an IPv4 or IPv6 address lies in any of the networks. An IPv4 address written as IPv6 \
          (`::ffff:10.0.0.1`) counts as IPv4; a network without prefix length is one address. What is not an \
          address gives null.",
    example: ("cidr_match('10.1.2.3', '10.0.0.0/8', 'fd00::/8')", "true"),
    parameters: Parameters {
        required: &[Kind::Text, Kind::TextOrList],
        optional: &[],
        more: Some(Kind::TextOrList),
    },
    returns: |_| DataType::Boolean,
    check: |constants: &Constants<'_>| {
        for index in 1..constants.len() {
            if let Some(bad) = constants.texts(index).iter().find(|text| parse_network(text).is_none()) {
                return Err(format!("`{bad}` is not a network such as `10.0.0.0/8` or `fd00::/8`"));
            }
        }
        Ok(())
    },
    evaluate: cidr_match,
};

/// `ip_version(ip)`.
pub(super) static IP_VERSION: Function = Function {
    name: "ip_version",
    signature: "ip_version(ip text) → int64",
    doc: "4 or 6; null if the text is not an IP address. An IPv4 address written as IPv6 counts as IPv4.",
    example: ("ip_version('2001:db8::1')", "6"),
    parameters: Parameters { required: &[Kind::Text], optional: &[], more: None },
    returns: |_| DataType::Int64,
    check: any,
    evaluate: |arguments| {
        let ips = arguments.text(0)?;
        let version = |row| parse_address(ips.get(row)?).map(|ip| if ip.is_ipv4() { 4 } else { 6 });
        Ok(Arc::new((0..arguments.rows).map(version).collect::<Int64Array>()))
    },
};

/// An address with surrounding white space trimmed; IPv4 in IPv6 clothes is IPv4.
fn parse_address(text: &str) -> Option<IpAddr> {
    text.trim().parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

fn parse_network(text: &str) -> Option<IpNet> {
    let text = text.trim();
    let network = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))?;
    match network {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => match v6.addr().to_ipv4_mapped() {
            Some(v4) => IpNet::new(IpAddr::V4(v4), v6.prefix_len() - 96).ok(),
            None => Some(network),
        },
        _ => Some(network),
    }
}

fn cidr_match(arguments: &Arguments<'_>) -> Result<ArrayRef> {
    let ips = arguments.text(0)?;
    let (mut networks, mut varying) = (Vec::new(), Vec::new());
    for index in 1..arguments.len() {
        match arguments.constant_texts(index) {
            Some(texts) => networks.extend(texts.iter().filter_map(|text| parse_network(text))),
            // A column, or the constant null.
            None => varying.push(index),
        }
    }
    let mut matches = Vec::with_capacity(arguments.rows);
    for row in 0..arguments.rows {
        let Some(ip) = ips.get(row).and_then(parse_address) else {
            matches.push(None);
            continue;
        };
        let mut found = networks.iter().any(|network| network.contains(&ip));
        let mut unknown = false;
        for &index in &varying {
            unknown |= arguments.is_null(index, row);
            found = found
                || arguments
                    .row_texts(index, row)?
                    .iter()
                    .any(|text| parse_network(text).is_some_and(|network| network.contains(&ip)));
        }
        matches.push((found || !unknown).then_some(found));
    }
    Ok(Arc::new(BooleanArray::from(matches)))
}

#[cfg(test)]
mod tests {
    use crate::functions::testing::{compile_error, eval};

    #[test]
    fn networks_of_both_families() {
        for (sql, expected) in [
            ("cidr_match('10.1.2.3', '10.0.0.0/8')", "true"),
            ("cidr_match('11.1.2.3', '10.0.0.0/8')", "false"),
            ("cidr_match(' 10.1.2.3 ', '10.1.2.3')", "true"),
            ("cidr_match('::ffff:10.1.2.3', '10.0.0.0/8')", "true"),
            ("cidr_match('10.1.2.3', '::ffff:10.0.0.0/104')", "true"),
            ("cidr_match('2001:db8::1', '2001:db8::/32')", "true"),
            ("cidr_match('2001:db9::1', '2001:db8::/32', '10.0.0.0/8')", "false"),
            ("cidr_match('192.168.1.1', ['10.0.0.0/8', '192.168.0.0/16'])", "true"),
            ("cidr_match('0.0.0.0', '::/0')", "false"),
            ("cidr_match('nonsense', '10.0.0.0/8')", "null"),
            ("cidr_match('10.0.0.1/8', '10.0.0.0/8')", "null"),
            ("cidr_match('010.0.0.1', '10.0.0.0/8')", "null"),
            ("cidr_match(NULL, '10.0.0.0/8')", "null"),
            ("cidr_match('10.0.0.1', NULL)", "null"),
            ("cidr_match('10.0.0.1', NULL, '10.0.0.0/8')", "true"),
            ("ip_version('1.2.3.4')", "4"),
            ("ip_version('::ffff:1.2.3.4')", "4"),
            ("ip_version('::1')", "6"),
            ("ip_version('1.2.3')", "null"),
        ] {
            assert_eq!(eval(sql), expected, "{sql}");
        }
    }

    #[test]
    fn networks_from_a_column() {
        assert_eq!(
            crate::functions::testing::eval_texts(
                "cidr_match('10.0.0.1', text)",
                &["10.0.0.0/8", "x", "::1"]
            ),
            ["true", "false", "false"]
        );
    }

    #[test]
    fn a_constant_that_is_no_network_does_not_compile() {
        let error = compile_error("cidr_match(text, '10.0.0.0/33')");
        assert_eq!(error.code, "sql::type");
        assert!(error.message.contains("`10.0.0.0/33` is not a network"), "{error}");
        assert!(compile_error("cidr_match(text, ['10.0.0.0/8', 'x'])").message.contains("`x` is not"));
        assert!(compile_error("cidr_match(text)").message.contains("wrong number of arguments"));
        assert!(compile_error("cidr_match(1.5, 'x')").message.contains("must be text"));
    }
}
