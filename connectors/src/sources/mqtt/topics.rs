//! Topic filters, and what their wildcards stand for in a topic.

use serde::Deserialize;

use crate::mqtt::Qos;

/// A topic filter, such as `plant/+/sensor/#` or `$share/group/plant/#`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Filter(String);

impl TryFrom<String> for Filter {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = |why: &str| Err(format!("`{text}` is no topic filter: {why}"));
        if text.len() > usize::from(u16::MAX) || text.contains('\0') {
            return wrong("it is too long, or has a character that no topic can have");
        }
        let shared = text.strip_prefix("$share/");
        if shared.is_some_and(|rest| {
            let group = rest.split_once('/').map_or("", |(group, _)| group);
            group.is_empty() || group.contains(['+', '#'])
        }) {
            return wrong("a shared one is `$share/GROUP/FILTER`");
        }
        if !rumqttc::valid_filter(pattern(&text)) {
            return wrong("`+` stands for a whole level, `#` for all that follow");
        }
        Ok(Self(text))
    }
}

/// The filter of a shared subscription, without its group.
fn pattern(filter: &str) -> &str {
    let rest = filter.strip_prefix("$share/").and_then(|rest| rest.split_once('/'));
    rest.map_or(filter, |(_, pattern)| pattern)
}

/// What a source subscribes to.
#[derive(Clone, Debug)]
pub(super) struct Topics {
    filters: Vec<Filter>,
    qos: Qos,
}

impl Topics {
    pub(super) fn new(filters: Vec<Filter>, qos: Qos) -> Self {
        Self { filters, qos }
    }

    pub(super) fn qos(&self) -> Qos {
        self.qos
    }

    /// The filters as the broker is told.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.filters.iter().map(|filter| filter.0.as_str())
    }

    /// What the wildcards of the first filter that fits stand for; nothing if none does.
    pub(super) fn levels<'a>(&self, topic: &'a str) -> Vec<&'a str> {
        self.filters.iter().find_map(|filter| levels(pattern(&filter.0), topic)).unwrap_or_default()
    }
}

fn levels<'a>(pattern: &str, topic: &'a str) -> Option<Vec<&'a str>> {
    let mut found = Vec::new();
    let mut rest = Some(topic);
    for level in pattern.split('/') {
        if level == "#" {
            found.extend(rest);
            return Some(found);
        }
        let current = rest?;
        let (first, behind) = current.split_once('/').map_or((current, None), |(a, b)| (a, Some(b)));
        match level {
            "+" => found.push(first),
            _ if level == first => {}
            _ => return None,
        }
        rest = behind;
    }
    rest.is_none().then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_stand_for_levels() {
        let cases: &[(&str, &str, Option<&[&str]>)] = &[
            ("plant/+/sensor/+", "plant/7/sensor/t4", Some(&["7", "t4"])),
            ("plant/+/sensor/+", "plant/7/sensor", None),
            ("plant/+/sensor/+", "plant/7/sensor/t4/x", None),
            ("plant/+/#", "plant/7/a/b", Some(&["7", "a/b"])),
            ("plant/+/#", "plant/7", Some(&["7"])),
            ("#", "a/b", Some(&["a/b"])),
            ("+", "a", Some(&["a"])),
            ("+/+", "/x", Some(&["", "x"])),
            ("a/b", "a/b", Some(&[])),
            ("a/b", "a/c", None),
        ];
        for (pattern, topic, expected) in cases {
            assert_eq!(levels(pattern, topic).as_deref(), *expected, "{pattern} {topic}");
        }
        let filters = ["$share/g/a/+", "b/#"].map(|f| Filter::try_from(f.to_owned()).unwrap());
        let topics = Topics::new(filters.to_vec(), Qos::AtLeastOnce);
        assert_eq!(topics.levels("a/1"), ["1"]);
        assert_eq!(topics.levels("b/1/2"), ["1/2"]);
        assert!(topics.levels("c").is_empty());
    }

    #[test]
    fn filters_that_no_broker_takes_are_refused() {
        for wrong in ["", "a#", "a/#/b", "a+/b", "$share/g", "$share//a", "$share/+/a", "$share/g/"] {
            assert!(Filter::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
        for right in ["#", "+", "a//b", "/", "$SYS/#", "$share/g/+/#"] {
            assert!(Filter::try_from(right.to_owned()).is_ok(), "{right}");
        }
    }
}
