//! What a client says that is no query: transactions, settings, subscriptions. Only the first words of a statement are
//! looked at; queries go to the real parser.

use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

use super::DIALECT;
use crate::compiler::Positions;
use crate::lake::SqlError;

/// What a statement asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Nothing.
    Empty,
    /// Rows: `SELECT`, `WITH`, `VALUES`, `EXPLAIN`, `DESCRIBE`, `SHOW TABLES`.
    Query,
    /// `EXPLAIN VIEW name` and its kin.
    Explain {
        /// What is asked of the view.
        what: Explained,
        /// Its name.
        view: String,
    },
    /// The start of a transaction, which changes nothing: each statement reads one epoch of its own.
    Begin,
    /// Its end.
    Commit,
    /// Its end, too.
    Rollback,
    /// Something that is answered with this tag and does nothing.
    Ignored(&'static str),
    /// `SET name TO value`.
    Set {
        /// In lower case.
        name: String,
        /// Without quotes.
        value: String,
    },
    /// `RESET name`; all without one.
    Reset(Option<String>),
    /// `SHOW name`, in lower case.
    Show(String),
    /// `DEALLOCATE name`; all without one.
    Deallocate(Option<String>),
    /// `SUBSCRIBE [TO] view` or `SUBSCRIBE (query)`, with `FROM 'token'` to go on.
    Subscribe {
        /// The view, or a query over one view.
        query: Subscribed,
        /// Where an earlier subscription ended.
        token: Option<String>,
    },
    /// `COPY (statement) TO STDOUT`: the rows of a statement as text.
    Copy(String),
    /// Something else, by its first word.
    Other(String),
}

/// What a statement asks of a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Explained {
    /// `EXPLAIN VIEW`: how it is computed.
    Plan,
    /// `EXPLAIN ANALYZE VIEW`: what its operators have done.
    Analyze,
    /// `EXPLAIN WATERMARK`: how far event time has come, and what holds it back.
    Watermark,
}

/// What is subscribed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subscribed {
    /// A view, by its name.
    View(String),
    /// `SELECT … FROM view WHERE …`.
    Query(String),
}

/// The statements of a text, each with where it begins, in bytes. Empty ones are left out.
///
/// # Errors
/// If a literal or comment does not end.
pub fn pieces(sql: &str) -> Result<Vec<(usize, &str)>, SqlError> {
    let positions = Positions::new(sql);
    let mut pieces = Vec::new();
    let mut piece: Option<(usize, usize)> = None;
    for TokenWithSpan { token, span } in tokens(sql, &positions)? {
        if token == Token::SemiColon {
            pieces.extend(piece.take());
            continue;
        }
        let Some((start, length)) = positions.range(span) else { continue };
        piece = Some((piece.map_or(start, |(first, _)| first), start + length));
    }
    pieces.extend(piece);
    Ok(pieces.into_iter().map(|(start, end)| (start, &sql[start..end])).collect())
}

/// The tokens without white space and comments.
fn tokens(sql: &str, positions: &Positions<'_>) -> Result<Vec<TokenWithSpan>, SqlError> {
    let tokens = Tokenizer::new(&DIALECT, sql).tokenize_with_location().map_err(|error| {
        let message = error.to_string();
        let (message, at) = positions.of_message(&message);
        SqlError { at, ..SqlError::new("sql::syntax", message) }
    })?;
    let is_said = |token: &Token| !matches!(token, Token::Whitespace(_) | Token::EOF);
    Ok(tokens.into_iter().filter(|token| is_said(&token.token)).collect())
}

/// What one statement asks for.
///
/// # Errors
/// If a literal does not end, or a command that is known is written wrongly.
pub fn command(sql: &str) -> Result<Command, SqlError> {
    let positions = Positions::new(sql);
    let tokens = tokens(sql, &positions)?;
    let mut words = Words { sql, positions: &positions, tokens: &tokens };
    let first = words.word().unwrap_or_default();
    Ok(match first.as_str() {
        "" if tokens.is_empty() => Command::Empty,
        "begin" => Command::Begin,
        "start" if words.eat("transaction") => Command::Begin,
        "commit" | "end" => Command::Commit,
        "rollback" if words.eat("to") => Command::Ignored("ROLLBACK"),
        "rollback" | "abort" => Command::Rollback,
        "savepoint" => Command::Ignored("SAVEPOINT"),
        "release" => Command::Ignored("RELEASE"),
        "discard" => Command::Ignored("DISCARD ALL"),
        "listen" => Command::Ignored("LISTEN"),
        "unlisten" => Command::Ignored("UNLISTEN"),
        "close" => Command::Ignored("CLOSE CURSOR"),
        "set" => words.set(),
        "reset" => Command::Reset(words.name().filter(|name| name != "all")),
        "show" => words.show(),
        "deallocate" => {
            words.eat("prepare");
            Command::Deallocate(words.exact().filter(|name| !name.eq_ignore_ascii_case("all")))
        }
        "subscribe" => words.subscribe()?,
        "copy" => words.copy()?,
        "explain" => words.explain()?,
        "select" | "with" | "values" | "describe" | "table" | "desc" => Command::Query,
        // A query in brackets.
        "" => Command::Query,
        other => Command::Other(other.to_owned()),
    })
}

struct Words<'a> {
    sql: &'a str,
    positions: &'a Positions<'a>,
    tokens: &'a [TokenWithSpan],
}

impl<'a> Words<'a> {
    fn next(&mut self) -> Option<&'a TokenWithSpan> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some(first)
    }

    /// The next token if it is a word without quotes, in lower case.
    fn word(&mut self) -> Option<String> {
        match &self.tokens.first()?.token {
            Token::Word(word) if word.quote_style.is_none() => {
                let word = word.value.to_ascii_lowercase();
                self.next();
                Some(word)
            }
            _ => None,
        }
    }

    /// The next token if it is a name, as it stands.
    fn exact(&mut self) -> Option<String> {
        match &self.tokens.first()?.token {
            Token::Word(word) => {
                self.next();
                Some(word.value.clone())
            }
            _ => None,
        }
    }

    /// The next name, in lower case; `a.b` is one.
    fn name(&mut self) -> Option<String> {
        let mut name = self.exact()?.to_ascii_lowercase();
        while self.tokens.first().is_some_and(|token| token.token == Token::Period) {
            self.next();
            name.push('.');
            name.push_str(&self.exact()?.to_ascii_lowercase());
        }
        Some(name)
    }

    fn eat(&mut self, word: &str) -> bool {
        let is_it = matches!(self.tokens.first().map(|token| &token.token),
            Some(Token::Word(found)) if found.quote_style.is_none() && found.value.eq_ignore_ascii_case(word));
        if is_it {
            self.next();
        }
        is_it
    }

    /// What is left, as one value: a literal without its quotes, or the text.
    fn value(&mut self) -> String {
        let of = |token: &Token| match token {
            Token::SingleQuotedString(text) => Some(text.clone()),
            Token::Word(word) if word.quote_style.is_some() => Some(word.value.clone()),
            _ => None,
        };
        if let [only] = self.tokens
            && let Some(text) = of(&only.token)
        {
            return text;
        }
        let start = self.tokens.first().and_then(|token| self.positions.range(token.span));
        start.map_or("", |(start, _)| self.sql[start..].trim_end()).to_owned()
    }

    fn set(&mut self) -> Command {
        if self.eat("session") {
            if self.eat("characteristics") {
                return Command::Ignored("SET");
            }
        } else {
            self.eat("local");
        }
        if self.eat("time") && self.eat("zone") {
            return Command::Set { name: "timezone".into(), value: self.value() };
        }
        if self.eat("names") {
            return Command::Set { name: "client_encoding".into(), value: self.value() };
        }
        match self.name() {
            Some(name) if name != "transaction" => {
                if !self.eat("to") && self.tokens.first().is_some_and(|token| token.token == Token::Eq) {
                    self.next();
                }
                Command::Set { name, value: self.value() }
            }
            _ => Command::Ignored("SET"),
        }
    }

    fn show(&mut self) -> Command {
        if self.eat("time") {
            return Command::Show("timezone".into());
        }
        match self.name().unwrap_or_default().as_str() {
            "tables" | "columns" | "functions" => Command::Query,
            "transaction" => Command::Show("transaction_isolation".into()),
            name => Command::Show(name.to_owned()),
        }
    }

    fn explain(&mut self) -> Result<Command, SqlError> {
        let what = if self.eat("view") {
            Explained::Plan
        } else if self.eat("watermark") {
            Explained::Watermark
        } else if self.eat("analyze") && self.eat("view") {
            Explained::Analyze
        } else {
            return Ok(Command::Query);
        };
        let view = self.view()?;
        while self.tokens.first().is_some_and(|token| token.token == Token::SemiColon) {
            self.next();
        }
        match self.tokens {
            [] => Ok(Command::Explain { what, view }),
            _ => Err(self.expected("the end")),
        }
    }

    /// The name of a view; `public.view` is the view.
    fn view(&mut self) -> Result<String, SqlError> {
        let name = self.exact().ok_or_else(|| self.expected("the name of a view"))?;
        if self.tokens.first().is_none_or(|token| token.token != Token::Period) {
            return Ok(name);
        }
        self.next();
        self.exact().ok_or_else(|| self.expected("the name of a view"))
    }

    fn subscribe(&mut self) -> Result<Command, SqlError> {
        self.eat("to");
        let query = match self.tokens.first().map(|token| &token.token) {
            Some(Token::LParen) => Subscribed::Query(self.bracketed()?),
            Some(Token::Word(_)) => Subscribed::View(self.view()?),
            _ => return Err(self.expected("the name of a view, or a query in brackets")),
        };
        let token = if self.eat("from") {
            let Some(Token::SingleQuotedString(token)) = self.tokens.first().map(|token| &token.token) else {
                return Err(self.expected("a token, as in FROM '5f0c…-1700000000000'"));
            };
            self.next();
            Some(token.clone())
        } else {
            None
        };
        match self.tokens.first() {
            None => Ok(Command::Subscribe { query, token }),
            Some(_) => Err(self.expected("FROM and a token, or the end")),
        }
    }

    fn copy(&mut self) -> Result<Command, SqlError> {
        if self.tokens.first().is_none_or(|token| token.token != Token::LParen) {
            return Err(self.expected("a query in brackets"));
        }
        let inner = self.bracketed()?;
        if self.eat("to") && self.eat("stdout") && self.tokens.is_empty() {
            return Ok(Command::Copy(inner));
        }
        Err(self.expected("TO STDOUT, and nothing behind it"))
    }

    /// The text within the brackets that begin here.
    fn bracketed(&mut self) -> Result<String, SqlError> {
        let range = |token: &TokenWithSpan| self.positions.range(token.span);
        let start = self.tokens.first().and_then(range).map_or(0, |(start, length)| start + length);
        let mut depth = 0;
        while let Some(token) = self.next() {
            match token.token {
                Token::LParen => depth += 1,
                Token::RParen => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                let end = self.positions.range(token.span).map_or(self.sql.len(), |(start, _)| start);
                return Ok(self.sql[start..end].to_owned());
            }
        }
        Err(self.expected("`)`"))
    }

    fn expected(&self, what: &str) -> SqlError {
        let at = self.tokens.first().and_then(|token| self.positions.range(token.span));
        SqlError { at, ..SqlError::new("sql::syntax", format!("expected {what}")) }
    }
}
