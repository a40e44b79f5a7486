//! Configuration files as text: several files read as one, and places told apart again.
//!
//! The files stand one behind the other in one virtual text, so that a span alone says in which file it lies.

use std::path::{Path, PathBuf};

use logdrive_schemas::component::{ConfigError, Limits, Node, NodeKind, Scalar, Span};

/// The text of all configuration files.
#[derive(Clone, Debug, Default)]
pub struct Files {
    files: Vec<File>,
}

#[derive(Clone, Debug)]
struct File {
    path: PathBuf,
    text: String,
    base: usize,
}

/// A span, found in its file.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The file.
    pub path: &'a Path,
    /// All of its text.
    pub text: &'a str,
    /// The span within `text`.
    pub span: Span,
    /// Line, from one.
    pub line: usize,
    /// Column in characters, from one.
    pub column: usize,
}

impl Files {
    /// Reads and parses files; the maps at their top level are joined, section by section.
    ///
    /// # Errors
    /// Everything that is wrong with reading and parsing. [`Self::place`] finds the places.
    pub fn read(paths: &[PathBuf]) -> (Self, Result<Node, Vec<ConfigError>>) {
        let mut files = Self::default();
        let mut errors = Vec::new();
        let mut root = Vec::new();
        for path in paths {
            match std::fs::metadata(path).and_then(|m| {
                let limit = Limits::default().bytes as u64;
                if m.len() > limit { Ok(Err(m.len())) } else { std::fs::read(path).map(Ok) }
            }) {
                Ok(Ok(bytes)) => match files.parse(path, &bytes) {
                    Ok(node) => join(&mut root, node, &mut errors),
                    Err(more) => errors.extend(more),
                },
                Ok(Err(n_bytes)) => {
                    let span = files.add(path, String::new());
                    let message = format!(
                        "{} has {n_bytes} bytes, the limit for a configuration is {}",
                        path.display(),
                        Limits::default().bytes
                    );
                    errors.push(ConfigError::new("config::too_large", span, message));
                }
                Err(e) => {
                    let span = files.add(path, String::new());
                    let message = format!("cannot read {}: {e}", path.display());
                    errors.push(ConfigError::new("config::unreadable", span, message));
                }
            }
        }
        let node = Node { kind: NodeKind::Map(root), span: Span::default() };
        (files, if errors.is_empty() { Ok(node) } else { Err(errors) })
    }

    /// Parses one text as a file of its own.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(&mut self, path: &Path, bytes: &[u8]) -> Result<Node, Vec<ConfigError>> {
        let base = self.add(path, String::from_utf8_lossy(bytes).into_owned()).start;
        let shift_error = |mut e: ConfigError| {
            e.span.start += base;
            e
        };
        let mut node = Node::parse(bytes, Limits::default())
            .map_err(|errors| errors.into_iter().map(shift_error).collect::<Vec<_>>())?;
        shift(&mut node, base);
        let mut errors = Vec::new();
        node.for_each_scalar(&mut |scalar, span| fill_in(scalar, span, &mut errors));
        if errors.is_empty() { Ok(node) } else { Err(errors) }
    }

    fn add(&mut self, path: &Path, text: String) -> Span {
        let base = self.files.last().map_or(0, |f| f.base + f.text.len() + 1);
        self.files.push(File { path: path.to_owned(), text, base });
        Span { start: base, len: 0 }
    }

    /// Finds a span's file; `None` only if there is no file at all.
    #[must_use]
    pub fn place(&self, span: Span) -> Option<Place<'_>> {
        let file = self.files.iter().rev().find(|f| f.base <= span.start)?;
        let start = (span.start - file.base).min(file.text.len());
        let start = (0..=start).rev().find(|at| file.text.is_char_boundary(*at)).unwrap_or(0);
        let end = (start + span.len).min(file.text.len());
        let before = &file.text[..start];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Some(Place {
            path: &file.path,
            text: &file.text,
            span: Span { start, len: end - start },
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        })
    }
}

fn shift(node: &mut Node, base: usize) {
    node.span.start += base;
    match &mut node.kind {
        NodeKind::Map(entries) => entries.iter_mut().for_each(|(key, value)| {
            key.span.start += base;
            shift(value, base);
        }),
        NodeKind::Scalar(_) => {}
        NodeKind::Seq(items) => items.iter_mut().for_each(|item| shift(item, base)),
    }
}

/// Joins the top-level maps of several files: sections are joined, a name in two files is an error.
fn join(root: &mut Vec<(logdrive_schemas::component::Key, Node)>, node: Node, errors: &mut Vec<ConfigError>) {
    let NodeKind::Map(entries) = node.kind else {
        errors.push(ConfigError::wrong_type(&node, "a map with `sources` and `sinks`"));
        return;
    };
    for (key, value) in entries {
        let Some((_, existing)) = root.iter_mut().find(|(k, _)| k.name == key.name) else {
            root.push((key, value));
            continue;
        };
        match (&mut existing.kind, value.kind) {
            (NodeKind::Map(existing), NodeKind::Map(more)) => {
                for (key, value) in more {
                    if existing.iter().any(|(k, _)| k.name == key.name) {
                        let message = format!("`{}` is defined in two files", key.name);
                        errors.push(ConfigError::new("config::duplicate_name", key.span, message));
                    } else {
                        existing.push((key, value));
                    }
                }
            }
            (NodeKind::Seq(existing), NodeKind::Seq(more)) => existing.extend(more),
            _ => {
                let message = format!("`{}` is set in two files", key.name);
                errors.push(ConfigError::new("config::duplicate_key", key.span, message));
            }
        }
    }
}

/// Fills in `${NAME}` and `${NAME:-default}` from the environment; `$${` stands for `${`.
fn fill_in(scalar: &mut Scalar, span: Span, errors: &mut Vec<ConfigError>) {
    if !scalar.text.contains("${") {
        return;
    }
    let mut filled = String::with_capacity(scalar.text.len());
    let mut rest = scalar.text.as_str();
    while let Some(at) = rest.find("${") {
        if let Some(before) = rest[..at].strip_suffix('$') {
            filled.push_str(before);
            filled.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        filled.push_str(&rest[..at]);
        let Some(end) = rest[at..].find('}') else {
            let error = ConfigError::new("config::syntax", span, "`${` without `}`");
            errors.push(error.with_help("write `$${` for the characters themselves"));
            return;
        };
        let inner = &rest[at + 2..at + end];
        let (name, default) = inner.split_once(":-").map_or((inner, None), |(n, d)| (n, Some(d)));
        match (std::env::var(name), default) {
            (Ok(value), _) if !value.is_empty() || default.is_none() => filled.push_str(&value),
            (_, Some(default)) => filled.push_str(default),
            _ => {
                let message = format!("the environment variable `{name}` is not set");
                let help = format!("set it, or write `${{{name}:-default}}`");
                errors.push(ConfigError::new("config::undefined_variable", span, message).with_help(help));
            }
        }
        rest = &rest[at + end + 1..];
    }
    filled.push_str(rest);
    scalar.text = filled;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_found_over_files() {
        let mut files = Files::default();
        files.parse(Path::new("a.yaml"), b"a: 1\n").unwrap();
        let node = files.parse(Path::new("b.yaml"), "é: 1\nb: two\n".as_bytes()).unwrap();
        let place = files.place(node.get("b").unwrap().span).unwrap();
        assert_eq!((place.path, place.line, place.column), (Path::new("b.yaml"), 2, 4));
    }

    #[test]
    fn variables_are_filled_in_values_only() {
        let mut files = Files::default();
        let yaml = b"a: \"${LOGDRIVE_UNSET:-x}y\"\nb: $${HOME}\n${K}: 1\n";
        let node = files.parse(Path::new("a.yaml"), yaml).unwrap();
        assert_eq!(node.get("a").unwrap().as_str(), Some("xy"));
        assert_eq!(node.get("b").unwrap().as_str(), Some("${HOME}"));
        assert!(node.get("${K}").is_some());
        let errors = files.parse(Path::new("b.yaml"), b"a: ${LOGDRIVE_UNSET}").unwrap_err();
        assert_eq!(errors[0].code, "config::undefined_variable");
    }
}
