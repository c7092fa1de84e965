//! Bytes to statements: the grammar of `scst.conf` without its meaning.
//!
//! One statement a line: words, then perhaps a block in braces. `#` where a word would begin starts a comment (inside a
//! word it is a character: initiator names may contain it). A backslash takes the next character as it is; double
//! quotes keep blanks.

use crate::diagnostic::{Collector, Place};

/// Longest configuration that is read, in bytes. Ten thousand LUNs take less than one MiB.
pub const TEXT_BYTES_MAX: usize = 16 << 20;

/// Blocks in blocks: HANDLER > DEVICE, TARGET_DRIVER > TARGET > GROUP > LUN. What is deeper is a mistake anyway.
const DEPTH_MAX: usize = 8;

/// One word and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// The word, quotes and escapes resolved.
    pub text: String,
    /// Where it begins, and how wide it is as written.
    pub place: Place,
}

/// One statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The first word.
    pub keyword: Word,
    /// The others.
    pub values: Vec<Word>,
    /// The statements of its block; `None` without braces.
    pub block: Option<Vec<Statement>>,
}

enum Token {
    Word(Word),
    Open(Place),
    Close(Place),
    LineEnd,
}

/// Reads `text` into statements. Mistakes go to the collector; after one the statements are not complete.
pub(crate) fn statements(text: &str, mistakes: &mut Collector<'_>) -> Vec<Statement> {
    let mut lexer = Lexer::new(text);
    let mut parser = Parser { open: Vec::new(), statements: Vec::new(), words: Vec::new() };
    loop {
        match lexer.next_token() {
            Ok(Some(token)) => {
                if let Err((place, reason, way_out)) = parser.take(token) {
                    mistakes.error(place, reason, way_out);
                    return Vec::new();
                }
            }
            Ok(None) => break,
            Err((place, reason, way_out)) => {
                mistakes.error(place, reason, way_out);
                return Vec::new();
            }
        }
    }
    parser.end_statement(None);
    if let Some(open) = parser.open.last() {
        mistakes.error(
            open.brace,
            format!("the block of {} is never closed", open.keyword.text),
            "write `}` on a line of its own where the block ends",
        );
        return Vec::new();
    }
    parser.statements
}

type Mistake = (Place, String, String);

/// A block whose closing brace has not come yet.
struct Open {
    keyword: Word,
    values: Vec<Word>,
    brace: Place,
    /// The statements before it on its level.
    before: Vec<Statement>,
}

struct Parser {
    open: Vec<Open>,
    statements: Vec<Statement>,
    words: Vec<Word>,
}

impl Parser {
    fn take(&mut self, token: Token) -> Result<(), Mistake> {
        match token {
            Token::Word(word) => self.words.push(word),
            Token::LineEnd => self.end_statement(None),
            Token::Open(brace) => {
                let mut words = std::mem::take(&mut self.words).into_iter();
                let Some(keyword) = words.next() else {
                    return Err((
                        brace,
                        "a block begins here, and nothing says what it is".to_owned(),
                        "put `{` at the end of the line that names the block".to_owned(),
                    ));
                };
                if self.open.len() >= DEPTH_MAX {
                    return Err((
                        brace,
                        format!("more than {DEPTH_MAX} blocks in blocks"),
                        "close the blocks before it with `}`".to_owned(),
                    ));
                }
                let before = std::mem::take(&mut self.statements);
                self.open.push(Open { keyword, values: words.collect(), brace, before });
            }
            Token::Close(brace) => {
                self.end_statement(None);
                let Some(open) = self.open.pop() else {
                    return Err((
                        brace,
                        "`}` closes a block, and none is open".to_owned(),
                        "remove it, or add the `{` it belongs to".to_owned(),
                    ));
                };
                let block = std::mem::replace(&mut self.statements, open.before);
                self.words.push(open.keyword);
                self.words.extend(open.values);
                self.end_statement(Some(block));
            }
        }
        Ok(())
    }

    fn end_statement(&mut self, block: Option<Vec<Statement>>) {
        let mut words = std::mem::take(&mut self.words).into_iter();
        if let Some(keyword) = words.next() {
            self.statements.push(Statement { keyword, values: words.collect(), block });
        }
    }
}

struct Lexer<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    line: u32,
    column: u32,
}

impl<'a> Lexer<'a> {
    fn new(text: &'a str) -> Self {
        Self { rest: text.chars().peekable(), line: 1, column: 1 }
    }

    fn here(&self) -> Place {
        Place { line: self.line, column: self.column, width: 1 }
    }

    fn advance(&mut self) -> Option<char> {
        let character = self.rest.next()?;
        if character == '\n' {
            self.line = self.line.saturating_add(1);
            self.column = 1;
        } else {
            self.column = self.column.saturating_add(1);
        }
        Some(character)
    }

    fn next_token(&mut self) -> Result<Option<Token>, Mistake> {
        loop {
            let place = self.here();
            let Some(&character) = self.rest.peek() else { return Ok(None) };
            match character {
                ' ' | '\t' | '\r' => {
                    self.advance();
                }
                '#' => {
                    while self.rest.peek().is_some_and(|&next| next != '\n') {
                        self.advance();
                    }
                }
                '\n' => {
                    self.advance();
                    return Ok(Some(Token::LineEnd));
                }
                '{' => {
                    self.advance();
                    return Ok(Some(Token::Open(place)));
                }
                '}' => {
                    self.advance();
                    return Ok(Some(Token::Close(place)));
                }
                _ => return self.word().map(|word| Some(Token::Word(word))),
            }
        }
    }

    fn word(&mut self) -> Result<Word, Mistake> {
        let start = self.here();
        let mut text = String::new();
        let mut quote: Option<Place> = None;
        while let Some(&character) = self.rest.peek() {
            let place = self.here();
            match character {
                '\n' => break,
                ' ' | '\t' | '\r' | '{' | '}' if quote.is_none() => break,
                '"' => {
                    self.advance();
                    quote = if quote.is_none() { Some(place) } else { None };
                }
                '\\' => {
                    self.advance();
                    match self.rest.peek() {
                        Some(&next) if !next.is_control() => {
                            text.push(next);
                            self.advance();
                        }
                        _ => {
                            return Err((
                                place,
                                "nothing follows the backslash that could be escaped".to_owned(),
                                "remove it, or write it twice for a backslash".to_owned(),
                            ));
                        }
                    }
                }
                other if other.is_control() && other != '\t' => {
                    return Err((
                        place,
                        format!("control character U+{:04X}", u32::from(other)),
                        "remove it: names and values are printable text".to_owned(),
                    ));
                }
                other => {
                    text.push(other);
                    self.advance();
                }
            }
        }
        if let Some(place) = quote {
            return Err((
                place,
                "the quoted text does not end on its line".to_owned(),
                "close it with `\"`".to_owned(),
            ));
        }
        let width = self.column.saturating_sub(start.column).max(1);
        Ok(Word { text, place: Place { width, ..start } })
    }
}
