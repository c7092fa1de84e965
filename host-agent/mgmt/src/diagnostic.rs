//! What a mistake in a configuration looks like to the person who made it: the place, the line with a caret under the
//! word, the reason and the way out. Nothing here knows the grammar.

use std::fmt;

/// A place in the text. Lines and columns count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Line, from 1.
    pub line: u32,
    /// Column of the first character, from 1.
    pub column: u32,
    /// Characters to underline, at least 1.
    pub width: u32,
}

impl Place {
    /// The first character of the text: for what concerns the file as a whole.
    pub const START: Self = Self { line: 1, column: 1, width: 1 };
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The configuration is refused.
    Error,
    /// It is accepted, and probably not what was meant.
    Warning,
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// File name as the caller gave it.
    pub file: String,
    /// Where.
    pub place: Place,
    /// The whole line it is on, tabs as single blanks.
    pub line_text: String,
    /// What is wrong: the object, the value and the reason.
    pub reason: String,
    /// What to write instead.
    pub way_out: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let Place { line, column, width } = self.place;
        let number = line.to_string();
        let margin = " ".repeat(number.len());
        let indent = " ".repeat(usize::try_from(column.saturating_sub(1)).unwrap_or(0));
        let carets = "^".repeat(usize::try_from(width.max(1)).unwrap_or(1));
        writeln!(f, "{severity}: {}", self.reason)?;
        writeln!(f, "{margin}--> {}:{line}:{column}", self.file)?;
        writeln!(f, "{number} | {}", self.line_text)?;
        writeln!(f, "{margin} | {indent}{carets}")?;
        write!(f, "{margin} = way out: {}", self.way_out)
    }
}

/// A configuration that was refused: every mistake found, in the order of the text. Nothing of it may be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Refused {
    /// At least one error.
    pub errors: Vec<Diagnostic>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for error in &self.errors {
            writeln!(f, "{error}")?;
        }
        let count = self.errors.len();
        let noun = if count == 1 { "mistake" } else { "mistakes" };
        write!(f, "{count} {noun}; nothing of the configuration was applied")
    }
}

/// Collects diagnostics while a text is read.
pub(crate) struct Collector<'a> {
    file: &'a str,
    text: &'a str,
    pub(crate) errors: Vec<Diagnostic>,
    pub(crate) warnings: Vec<Diagnostic>,
}

/// Mistakes reported at once: beyond these the first ones are more useful than the rest.
const DIAGNOSTICS_MAX: usize = 20;

/// Characters of a line that a message shows.
const LINE_CHARACTERS_MAX: usize = 400;

impl<'a> Collector<'a> {
    pub(crate) fn new(file: &'a str, text: &'a str) -> Self {
        Self { file, text, errors: Vec::new(), warnings: Vec::new() }
    }

    pub(crate) fn error(
        &mut self,
        place: Place,
        reason: impl Into<String>,
        way_out: impl Into<String>,
    ) {
        if self.errors.len() < DIAGNOSTICS_MAX {
            let diagnostic = self.diagnostic(Severity::Error, place, reason.into(), way_out.into());
            self.errors.push(diagnostic);
        }
    }

    pub(crate) fn warning(
        &mut self,
        place: Place,
        reason: impl Into<String>,
        way_out: impl Into<String>,
    ) {
        if self.warnings.len() < DIAGNOSTICS_MAX {
            let diagnostic =
                self.diagnostic(Severity::Warning, place, reason.into(), way_out.into());
            self.warnings.push(diagnostic);
        }
    }

    fn diagnostic(
        &self,
        severity: Severity,
        place: Place,
        reason: String,
        way_out: String,
    ) -> Diagnostic {
        let index = usize::try_from(place.line.saturating_sub(1)).unwrap_or(usize::MAX);
        let line_text = self.text.split('\n').nth(index).unwrap_or("");
        let line_text = line_text
            .trim_end_matches('\r')
            .chars()
            .take(LINE_CHARACTERS_MAX)
            .map(|character| if character.is_control() { ' ' } else { character })
            .collect();
        Diagnostic { severity, file: self.file.to_owned(), place, line_text, reason, way_out }
    }
}
