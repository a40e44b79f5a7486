//! A YAML document as a tree that knows where each part stands in the file.
//!
//! Parsing is bounded before it can hurt: bytes, nodes, depth and alias expansion all have limits, so that a YAML
//! bomb or a huge file is a clear error. Scalars keep their text; what type they are is for the reader to say.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle};

use super::error::{ConfigError, Span};

/// A mapping key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its text.
    pub name: String,
    /// Where it stands.
    pub span: Span,
}

/// A scalar's text, and whether it was quoted (and so can only be a string).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scalar {
    /// The text, escapes resolved.
    pub text: String,
    /// Quoted, or a block scalar.
    pub quoted: bool,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// Keys and values in the order of the file; keys are unique.
    Map(Vec<(Key, Node)>),
    /// A scalar.
    Scalar(Scalar),
    /// A sequence.
    Seq(Vec<Node>),
}

/// A YAML subtree that knows its place in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: NodeKind,
    /// Where it stands.
    pub span: Span,
}

/// Bounds on a document.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the file.
    pub bytes: usize,
    /// Nodes after aliases are expanded.
    pub nodes: usize,
    /// Nesting.
    pub depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 8 << 20, nodes: 200_000, depth: 64 }
    }
}

impl Node {
    /// Parses one YAML document. Duplicate keys are reported, all of them; what breaks the grammar ends the parse.
    ///
    /// # Errors
    /// Every error found: a file over its limits, bytes that are not UTF-8, bad syntax, duplicate keys.
    pub fn parse(bytes: &[u8], limits: Limits) -> Result<Self, Vec<ConfigError>> {
        if bytes.len() > limits.bytes {
            let message = format!("the file has {} bytes, the limit is {}", bytes.len(), limits.bytes);
            return Err(vec![ConfigError::new("config::too_large", Span::default(), message)]);
        }
        let text = std::str::from_utf8(bytes).map_err(|e| {
            let span = Span { start: e.valid_up_to(), len: 1 };
            vec![ConfigError::new("config::not_utf8", span, "the file is not valid UTF-8")]
        })?;
        Builder::new(text, limits).run()
    }

    /// The text of a scalar.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match &self.kind {
            NodeKind::Scalar(scalar) => Some(&scalar.text),
            _ => None,
        }
    }

    /// The entries of a map.
    #[must_use]
    pub fn as_map(&self) -> Option<&[(Key, Self)]> {
        match &self.kind {
            NodeKind::Map(entries) => Some(entries),
            _ => None,
        }
    }

    /// The value of `key`, if this is a map that has it.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.as_map()?.iter().find(|(k, _)| k.name == key).map(|(_, v)| v)
    }

    /// Takes `key` and its value out of a map.
    pub fn take(&mut self, key: &str) -> Option<Self> {
        let NodeKind::Map(entries) = &mut self.kind else { return None };
        let idx = entries.iter().position(|(k, _)| k.name == key)?;
        Some(entries.remove(idx).1)
    }

    /// Whether the scalar is an unquoted `null`, `~` or nothing.
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(&self.kind, NodeKind::Scalar(s) if !s.quoted && matches!(s.text.as_str(), "" | "null" | "~"))
    }

    /// What this is, for error messages.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.kind {
            NodeKind::Map(_) => "a map".into(),
            NodeKind::Scalar(_) if self.is_null() => "nothing".into(),
            NodeKind::Scalar(s) => format!("`{}`", s.text.chars().take(40).collect::<String>()),
            NodeKind::Seq(_) => "a list".into(),
        }
    }

    /// The node as JSON, for reading free-form values: unquoted scalars become null, booleans and numbers.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value;
        match &self.kind {
            NodeKind::Map(entries) => {
                Value::Object(entries.iter().map(|(k, v)| (k.name.clone(), v.to_json())).collect())
            }
            NodeKind::Seq(items) => Value::Array(items.iter().map(Self::to_json).collect()),
            NodeKind::Scalar(s) if s.quoted => Value::String(s.text.clone()),
            NodeKind::Scalar(_) if self.is_null() => Value::Null,
            NodeKind::Scalar(s) => match s.text.as_str() {
                "true" => Value::Bool(true),
                "false" => Value::Bool(false),
                text => text
                    .parse::<serde_json::Number>()
                    .map_or_else(|_| Value::String(text.into()), Value::Number),
            },
        }
    }

    /// Applies `f` to the text of every scalar below, in file order. Keys are left alone.
    pub fn for_each_scalar(&mut self, f: &mut impl FnMut(&mut Scalar, Span)) {
        match &mut self.kind {
            NodeKind::Map(entries) => entries.iter_mut().for_each(|(_, v)| v.for_each_scalar(f)),
            NodeKind::Scalar(scalar) => f(scalar, self.span),
            NodeKind::Seq(items) => items.iter_mut().for_each(|item| item.for_each_scalar(f)),
        }
    }

    /// Removes the map entry whose key stands at `span`, anywhere below; whether it was there.
    pub(super) fn remove_at(&mut self, span: Span) -> bool {
        match &mut self.kind {
            NodeKind::Map(entries) => {
                if let Some(idx) = entries.iter().position(|(k, _)| k.span == span) {
                    entries.remove(idx);
                    return true;
                }
                entries.iter_mut().any(|(_, v)| v.remove_at(span))
            }
            NodeKind::Scalar(_) => false,
            NodeKind::Seq(items) => items.iter_mut().any(|item| item.remove_at(span)),
        }
    }
}

/// An open collection while the tree is built.
enum Frame {
    Map { start: Span, anchor: usize, entries: Vec<(Key, Node)>, key: Option<Key> },
    Seq { start: Span, anchor: usize, items: Vec<Node> },
}

struct Builder<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    /// Byte offset of each character, only if the text is not ASCII.
    bytes_of_chars: Option<Vec<usize>>,
    text_len: usize,
    limits: Limits,
    n_nodes: usize,
    anchors: HashMap<usize, (Node, usize)>,
    stack: Vec<Frame>,
    root: Option<Node>,
    errors: Vec<ConfigError>,
}

impl<'a> Builder<'a> {
    fn new(text: &'a str, limits: Limits) -> Self {
        let bytes_of_chars = (!text.is_ascii()).then(|| text.char_indices().map(|(at, _)| at).collect());
        Self {
            parser: Parser::new_from_str(text),
            bytes_of_chars,
            text_len: text.len(),
            limits,
            n_nodes: 0,
            anchors: HashMap::new(),
            stack: Vec::new(),
            root: None,
            errors: Vec::new(),
        }
    }

    fn byte(&self, char_idx: usize) -> usize {
        match &self.bytes_of_chars {
            Some(table) => table.get(char_idx).copied().unwrap_or(self.text_len),
            None => char_idx.min(self.text_len),
        }
    }

    fn span(&self, span: saphyr_parser::Span) -> Span {
        let start = self.byte(span.start.index());
        Span { start, len: self.byte(span.end.index()).saturating_sub(start).max(1) }
    }

    fn run(mut self) -> Result<Node, Vec<ConfigError>> {
        let mut n_documents = 0;
        while let Some(event) = self.parser.next() {
            let (event, span) = match event {
                Ok((event, span)) => (event, self.span(span)),
                Err(e) => {
                    let span = Span { start: self.byte(e.marker().index()), len: 1 };
                    let error = ConfigError::new("config::syntax", span, e.info().to_lowercase());
                    self.errors.push(error);
                    return Err(self.errors);
                }
            };
            if let Event::DocumentStart(_) = event {
                n_documents += 1;
                if n_documents > 1 {
                    let message = "a second document starts here, a file holds one";
                    self.errors.push(ConfigError::new("config::syntax", span, message));
                    return Err(self.errors);
                }
            }
            if let Err(error) = self.event(event, span) {
                self.errors.push(error);
                return Err(self.errors);
            }
        }
        if !self.errors.is_empty() {
            return Err(self.errors);
        }
        Ok(self.root.unwrap_or(Node { kind: NodeKind::Map(Vec::new()), span: Span::default() }))
    }

    fn event(&mut self, event: Event<'a>, span: Span) -> Result<(), ConfigError> {
        match event {
            Event::MappingStart(anchor, _) => {
                self.open(Frame::Map { start: span, anchor, entries: Vec::new(), key: None }, span)
            }
            Event::SequenceStart(anchor, _) => {
                self.open(Frame::Seq { start: span, anchor, items: Vec::new() }, span)
            }
            Event::MappingEnd | Event::SequenceEnd => self.close(span),
            Event::Scalar(text, style, anchor, _) => {
                let quoted = style != ScalarStyle::Plain;
                let kind = NodeKind::Scalar(Scalar { text: text.into_owned(), quoted });
                self.place(Node { kind, span }, anchor, 1)
            }
            Event::Alias(anchor) => {
                let Some((mut node, n_nodes)) = self.anchors.get(&anchor).cloned() else {
                    let message = "an alias to itself or to nothing";
                    return Err(ConfigError::new("config::syntax", span, message));
                };
                node.span = span;
                self.place(node, 0, n_nodes)
            }
            _ => Ok(()),
        }
    }

    fn open(&mut self, frame: Frame, span: Span) -> Result<(), ConfigError> {
        if self.stack.len() >= self.limits.depth {
            let message = format!("nested deeper than {} levels", self.limits.depth);
            return Err(ConfigError::new("config::too_deep", span, message));
        }
        if let Some(Frame::Map { key: None, .. }) = self.stack.last() {
            let message = "a key is a list or a map, keys are names";
            return Err(ConfigError::new("config::syntax", span, message));
        }
        self.stack.push(frame);
        Ok(())
    }

    fn close(&mut self, end: Span) -> Result<(), ConfigError> {
        let until = |start: Span| Span {
            start: start.start,
            len: end.start.saturating_sub(start.start).max(start.len),
        };
        let (node, anchor) = match self.stack.pop() {
            Some(Frame::Map { start, anchor, entries, .. }) => {
                (Node { kind: NodeKind::Map(entries), span: until(start) }, anchor)
            }
            Some(Frame::Seq { start, anchor, items }) => {
                (Node { kind: NodeKind::Seq(items), span: until(start) }, anchor)
            }
            None => return Ok(()),
        };
        self.place(node, anchor, 1)
    }

    /// Puts a finished node into the open collection. `n_nodes` is what it adds to the count: an alias adds all
    /// that it stands for, which is what stops a bomb.
    fn place(&mut self, node: Node, anchor: usize, n_nodes: usize) -> Result<(), ConfigError> {
        self.n_nodes += n_nodes;
        if self.n_nodes > self.limits.nodes {
            let message = format!("more than {} values, aliases counted in full", self.limits.nodes);
            return Err(ConfigError::new("config::too_large", node.span, message));
        }
        if anchor > 0 {
            let n_nodes = count(&node);
            self.anchors.insert(anchor, (node.clone(), n_nodes));
        }
        match self.stack.last_mut() {
            None => self.root = Some(node),
            Some(Frame::Seq { items, .. }) => items.push(node),
            Some(Frame::Map { entries, key, .. }) => match key.take() {
                Some(key) => entries.push((key, node)),
                None => {
                    let NodeKind::Scalar(scalar) = node.kind else {
                        let message = "a key is a list or a map, keys are names";
                        return Err(ConfigError::new("config::syntax", node.span, message));
                    };
                    if entries.iter().any(|(k, _)| k.name == scalar.text) {
                        let message = format!("duplicate key `{}`", scalar.text);
                        let error = ConfigError::new("config::duplicate_key", node.span, message);
                        self.errors.push(error);
                    }
                    *key = Some(Key { name: scalar.text, span: node.span });
                }
            },
        }
        Ok(())
    }
}

fn count(node: &Node) -> usize {
    1 + match &node.kind {
        NodeKind::Map(entries) => entries.iter().map(|(_, v)| count(v)).sum(),
        NodeKind::Scalar(_) => 0,
        NodeKind::Seq(items) => items.iter().map(count).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(text: &str) -> Vec<&'static str> {
        match Node::parse(text.as_bytes(), Limits::default()) {
            Ok(_) => Vec::new(),
            Err(errors) => errors.iter().map(|e| e.code).collect(),
        }
    }

    #[test]
    fn spans_are_bytes_also_behind_other_scripts() {
        let text = "é: ü\nname: value\n";
        let node = Node::parse(text.as_bytes(), Limits::default()).unwrap();
        let value = node.get("name").unwrap();
        assert_eq!(&text[value.span.start..value.span.start + value.span.len], "value");
    }

    #[test]
    fn a_bomb_is_refused() {
        let mut text = String::from("a: &a [x, x, x, x, x, x, x, x, x, x]\n");
        for (prev, this) in [('a', 'b'), ('b', 'c'), ('c', 'd'), ('d', 'e'), ('e', 'f'), ('f', 'g')] {
            let aliases = vec![format!("*{prev}"); 10].join(", ");
            text.push_str(&format!("{this}: &{this} [{aliases}]\n"));
        }
        assert_eq!(codes(&text), ["config::too_large"]);
    }

    #[test]
    fn bad_documents_are_named() {
        assert_eq!(codes("a: 1\na: 2\nb: 1\nb: 2\n"), ["config::duplicate_key"; 2]);
        assert_eq!(codes("a: [1\n"), ["config::syntax"]);
        assert_eq!(codes(&"[".repeat(100)), ["config::too_deep"]);
        assert_eq!(codes("a: *b\n"), ["config::syntax"]);
        assert_eq!(codes("a: 1\n---\nb: 1\n"), ["config::syntax"]);
        let errors = Node::parse(b"a: \xff", Limits::default()).unwrap_err();
        assert_eq!((errors[0].code, errors[0].span.start), ("config::not_utf8", 3));
    }
}
