//! Names of topics.

/// What Kafka allows for the name of a topic, in bytes.
const TOPIC_BYTES_MAX: usize = 249;

/// Makes the name of a topic of any text: what Kafka does not allow becomes `_`.
pub(super) fn make_topic(name: &mut String) {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !name.chars().all(is_allowed) {
        *name = name.chars().map(|c| if is_allowed(c) { c } else { '_' }).collect();
    }
    name.truncate(TOPIC_BYTES_MAX);
    if matches!(name.as_str(), "" | "." | "..") {
        name.replace_range(.., "_");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_makes_a_topic() {
        for (text, topic) in
            [("events-a.b_C9", "events-a.b_C9"), ("a/ä b", "a___b"), ("", "_"), ("..", "_"), ("...", "...")]
        {
            let mut name = text.to_owned();
            make_topic(&mut name);
            assert_eq!(name, topic);
        }
        let mut long = "x".repeat(400);
        make_topic(&mut long);
        assert_eq!(long.len(), 249);
    }
}
