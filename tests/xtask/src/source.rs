//! Reads Rust source text well enough to look for words in it: what is code, what is not, and which
//! lines are tests. It knows nothing of what is being looked for; that is `tidy`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// One source file.
pub struct Source {
    /// Its path from the workspace's root, with `/` between the parts.
    pub path: String,
    /// The text as it is.
    pub text: String,
    /// The same text with comments and the insides of literals blanked, line for line.
    pub code: String,
    /// For each line whether it is test code, by `#[cfg(test)]` or because the whole file is.
    pub is_test: Vec<bool>,
}

impl Source {
    /// Takes a file apart. `is_test` says that the file as a whole is test code.
    pub fn new(path: String, text: String, is_test: bool) -> Self {
        let code = code_of(&text);
        let is_test = if is_test { vec![true; text.lines().count()] } else { test_lines(&code) };
        Self { path, text, code, is_test }
    }

    /// The lines of code that are not tests, numbered from 1.
    pub fn shipping_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.code.lines().zip(&self.is_test).enumerate();
        lines.filter(|(_, (_, is_test))| !**is_test).map(|(index, (line, _))| (index + 1, line))
    }
}

/// Every Rust file under `root`, build outputs aside, in the order of their paths.
pub fn all(root: &Path) -> Result<Vec<Source>> {
    let mut paths = Vec::new();
    collect(root, &mut paths)?;
    paths.sort();
    let mut files = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("{} cannot be read", path.display()))?;
        let path = path.strip_prefix(root)?.to_string_lossy().into_owned();
        files.push((path, text));
    }
    let test_files: Vec<String> = files.iter().flat_map(|(p, t)| test_modules(p, t)).collect();
    Ok(files
        .into_iter()
        .map(|(path, text)| {
            let by_folder = path.contains("/tests/") || path.contains("/benches/");
            let is_test = by_folder || test_files.contains(&path);
            Source::new(path, text, is_test)
        })
        .collect())
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') || name == "target" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), paths)?;
        } else if name.ends_with(".rs") {
            paths.push(entry.path());
        }
    }
    Ok(())
}

/// The files that `#[cfg(test)] mod name;` in the file at `path` pulls in.
fn test_modules(path: &str, text: &str) -> Vec<String> {
    let folder = match path.rsplit_once('/') {
        Some((folder, "lib.rs" | "main.rs" | "mod.rs")) => folder.to_string(),
        _ => path.trim_end_matches(".rs").to_string(),
    };
    let code = code_of(text);
    code.match_indices("#[cfg(test)]")
        .filter_map(|(at, attribute)| {
            let item = code[at + attribute.len()..].split([';', '{']).next()?;
            item.trim().strip_prefix("mod ").map(|name| format!("{folder}/{name}.rs"))
        })
        .collect()
}

/// Blanks comments and the insides of string and character literals; newlines stay.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    let mut previous = ' ';
    while let Some(first) = rest.chars().next() {
        let (bytes, visible) = match token(rest, previous) {
            Some(bytes) => (bytes, false),
            None => (first.len_utf8(), true),
        };
        let (token, after) = rest.split_at(bytes);
        if visible {
            code.push_str(token);
        } else {
            code.extend(token.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        }
        previous = first;
        rest = after;
    }
    code
}

/// The length of the comment or literal that `rest` begins with, if it begins with one.
fn token(rest: &str, previous: char) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return Some(block_comment(rest));
    }
    if rest.starts_with('"') {
        return Some(quoted(rest, '"'));
    }
    if rest.starts_with('\'') {
        return character(rest);
    }
    let in_word = previous.is_alphanumeric() || previous == '_';
    let raw = rest.strip_prefix('b').unwrap_or(rest).strip_prefix('r')?;
    let hashes = raw.len() - raw.trim_start_matches('#').len();
    let body = raw[hashes..].strip_prefix('"')?;
    if in_word {
        return None;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let body_bytes = body.find(&end).map_or(body.len(), |at| at + end.len());
    Some(rest.len() - body.len() + body_bytes)
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        let here = &rest[at..];
        if here.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if here.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += here.chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, character) in rest.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// `'a'` and `'\n'` are literals, `'a` alone is a lifetime.
fn character(rest: &str) -> Option<usize> {
    let mut characters = rest.char_indices().skip(1);
    let (_, first) = characters.next()?;
    if first == '\\' {
        return Some(quoted(rest, '\''));
    }
    match characters.next()? {
        (at, '\'') => Some(at + 1),
        _ => None,
    }
}

/// The lines inside items marked `#[cfg(test)]` (or `cfg(all(test, ...))`).
fn test_lines(code: &str) -> Vec<bool> {
    let mut lines = vec![false; code.lines().count()];
    for marker in ["#[cfg(test)]", "#[cfg(all(test,"] {
        for (start, _) in code.match_indices(marker) {
            let end = start + item_bytes(&code[start..]);
            let first = code[..start].matches('\n').count();
            let last = code[..end].matches('\n').count();
            lines.iter_mut().take(last + 1).skip(first).for_each(|line| *line = true);
        }
    }
    lines
}

/// The length of the item that `code` begins with: up to its `;`, or its closing brace.
fn item_bytes(code: &str) -> usize {
    let mut depth = 0;
    for (at, character) in code.char_indices() {
        match character {
            ';' if depth == 0 => return at,
            '{' => depth += 1,
            '}' if depth <= 1 => return at,
            '}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked_and_code_is_kept() {
        let text = "let a = \"unsafe \\\" x\"; // unsafe\nlet b = r#\"un\"safe\"#; /* unsafe /* x */ y */ c::<'a>('\"', b'\\'')";
        let code = code_of(text);
        assert!(!code.contains("unsafe") && !code.contains("safe"));
        assert!(code.contains("let a =") && code.contains("let b =") && code.contains("c::<'a>("));
        assert_eq!(code.lines().count(), 2);
    }

    #[test]
    fn a_name_that_ends_in_r_before_a_string_is_not_a_raw_string() {
        assert_eq!(code_of("br\"x\" attr\"y\""), "      attr   ");
    }

    #[test]
    fn test_modules_are_told_from_what_ships() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n fn b() { {} }\n}\nfn c() {}\n";
        let source = Source::new("x.rs".into(), text.into(), false);
        let lines: Vec<usize> = source.shipping_lines().map(|(number, _)| number).collect();
        assert_eq!(lines, [1, 6]);
    }

    #[test]
    fn a_test_module_in_a_file_of_its_own_is_found() {
        let text = "#[cfg(test)]\nmod tests;\nmod other;";
        assert_eq!(test_modules("a/src/lib.rs", text), ["a/src/tests.rs"]);
        assert_eq!(test_modules("a/src/ring.rs", text), ["a/src/ring/tests.rs"]);
    }
}
