//! Configuration errors as a person reads them in a terminal.

use std::fmt::Write as _;

use logdrive_schemas::component::ConfigError;
use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteDiagnostic, NamedSource, Report};

use super::file::Files;

/// Renders every error with its place in the file; `color` for terminals.
#[must_use]
pub fn render(files: &Files, errors: &[ConfigError], color: bool) -> String {
    let theme = if color { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
    let handler = GraphicalReportHandler::new_themed(theme).with_width(100).with_links(false);
    let mut out = String::new();
    for error in errors {
        let mut diagnostic = MietteDiagnostic::new(error.message.clone()).with_code(error.code);
        if let Some(help) = &error.help {
            diagnostic = diagnostic.with_help(help.clone());
        }
        let place = files.place(error.span).filter(|place| !place.text.is_empty());
        if let Some(place) = &place {
            let span = (place.span.start, place.span.len);
            diagnostic = diagnostic.with_label(LabeledSpan::new_with_span(None, span));
        }
        let mut report = Report::new(diagnostic);
        if let Some(place) = place {
            let source = NamedSource::new(place.path.display().to_string(), place.text.to_owned());
            report = report.with_source_code(source);
        }
        if handler.render_report(&mut out, report.as_ref()).is_err() {
            writeln!(out, "{}: {}", error.code, error.message).expect("writing to a string cannot fail");
        }
    }
    let n = errors.len();
    writeln!(out, "{n} error{} found", if n == 1 { "" } else { "s" })
        .expect("writing to a string cannot fail");
    out
}
