//! The text of an expression before it is parsed: its limits, and where things are in it.
//!
//! The parser, the planner and evaluation are recursive. Limits on the text, checked on its tokens, are what keeps
//! hostile or generated SQL from overflowing a stack.

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Location, Span, Token, TokenWithSpan, Tokenizer, Word};
use logdrive_operators::CompileError;

/// The longest text, in bytes.
pub(super) const TEXT_LIMIT: usize = 64 << 10;
/// The deepest nesting of brackets.
pub(crate) const NESTING_LIMIT: usize = 200;
/// The most operators and keywords.
pub(super) const OPERATOR_LIMIT: usize = 3000;

pub(crate) const DIALECT: GenericDialect = GenericDialect {};

/// Byte positions in a text whose tokens are known by line and column.
#[derive(Debug)]
pub(crate) struct Positions<'a> {
    text: &'a str,
    /// Where each line starts.
    lines: Vec<usize>,
}

impl<'a> Positions<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, lines }
    }

    /// The byte at a line and column, both from 1; a column is a character.
    fn byte(&self, location: Location) -> Option<usize> {
        let line = *self.lines.get(usize::try_from(location.line).ok()?.checked_sub(1)?)?;
        let column = usize::try_from(location.column).ok()?.checked_sub(1)?;
        let rest = self.text.get(line..)?;
        Some(rest.char_indices().nth(column).map_or(self.text.len(), |(at, _)| line + at))
    }

    /// Start and length of a span; `None` if it is not in the text.
    pub(crate) fn range(&self, span: Span) -> Option<(usize, usize)> {
        let (start, end) = (self.byte(span.start)?, self.byte(span.end)?);
        (start < end).then_some((start, end - start))
    }

    /// The place that a parser's message names (`… at Line: 1, Column: 8`), and the message without it.
    pub(crate) fn of_message<'m>(&self, message: &'m str) -> (&'m str, Option<(usize, usize)>) {
        let Some((what, place)) = message.rsplit_once(" at Line: ") else { return (message, None) };
        let Some((line, column)) = place.split_once(", Column: ") else { return (message, None) };
        let (Ok(line), Ok(column)) = (line.trim().parse(), column.trim().parse()) else {
            return (message, None);
        };
        let at = self.byte(Location::new(line, column)).map(|start| {
            let length = self.text[start..].split(char::is_whitespace).next().map_or(0, str::len);
            (start, length)
        });
        (what, at)
    }
}

/// The tokens of a text within the limits; nothing else may reach the parser.
pub(crate) fn tokens(text: &str, positions: &Positions<'_>) -> Result<Vec<TokenWithSpan>, CompileError> {
    if text.len() > TEXT_LIMIT {
        let help = format!("expressions are at most {} KiB", TEXT_LIMIT >> 10);
        return Err(syntax("the expression is too long", Some(help), None));
    }
    let tokens = Tokenizer::new(&DIALECT, text).tokenize_with_location().map_err(|error| {
        let message = error.to_string();
        let (message, at) = positions.of_message(&message);
        syntax(message, None, at)
    })?;
    let (mut depth, mut operators) = (0usize, 0usize);
    for token in &tokens {
        match &token.token {
            Token::LParen => depth += 1,
            // Subscripts may follow each other without being nested in the text, and still nest in the tree.
            Token::LBracket | Token::LBrace => {
                depth += 1;
                operators += 1;
            }
            Token::RParen | Token::RBracket | Token::RBrace => depth = depth.saturating_sub(1),
            Token::Word(word) => operators += usize::from(word.keyword != Keyword::NoKeyword),
            Token::Whitespace(_)
            | Token::Comma
            | Token::Number(..)
            | Token::SingleQuotedString(_)
            | Token::EOF => {}
            _ => operators += 1,
        }
        if depth > NESTING_LIMIT {
            let help = format!("brackets may be nested {NESTING_LIMIT} deep");
            return Err(syntax(
                "the expression is nested too deeply",
                Some(help),
                positions.range(token.span),
            ));
        }
        if operators > OPERATOR_LIMIT {
            let help = "split it, or use IN (…) for a long list of values, or a lookup table".to_owned();
            return Err(syntax(
                "the expression has too many operators",
                Some(help),
                positions.range(token.span),
            ));
        }
    }
    Ok(tokens)
}

/// Quotes the column names that the parser would take for something else: `@timestamp` for a variable, `user` for
/// the name of the session's user.
pub(crate) fn quote_columns(tokens: &mut [TokenWithSpan], is_column: impl Fn(&str) -> bool) {
    for token in tokens {
        let Token::Word(word) = &mut token.token else { continue };
        let mistaken = word.value.starts_with('@')
            || matches!(
                word.keyword,
                Keyword::USER | Keyword::CURRENT_USER | Keyword::SESSION_USER | Keyword::CURRENT_CATALOG
            );
        if mistaken && word.quote_style.is_none() && is_column(&word.value) {
            *word = Word { value: word.value.clone(), quote_style: Some('"'), keyword: Keyword::NoKeyword };
        }
    }
}

pub(crate) fn syntax(
    message: impl Into<String>,
    help: Option<String>,
    at: Option<(usize, usize)>,
) -> CompileError {
    CompileError { code: "sql::syntax", message: message.into(), help, at }
}
