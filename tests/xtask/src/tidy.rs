//! Rules about the source text that the compiler and clippy do not know: where unsafe may live, what
//! each place may touch, how files open, which names and unfinished marks are not wanted.

use std::path::Path;

use anyhow::Result;

use crate::source::{self, Source};

/// The only files that may hold unsafe code, each with what makes it unavoidable.
const UNSAFE_FILES: &[(&str, &str)] = &[
    ("ci-emulator/pcie/src/segment.rs", "memory mapped into several processes has no owner"),
    ("handlers/src/memory.rs", "an arena is mapped memory that the card writes to as well"),
    ("tests/scenario/src/bin/figures/allocations.rs", "an allocator cannot be wrapped without it"),
    (
        "dpu-firmware/verbs-ibv/sys/src/library.rs",
        "functions of libraries that are opened at run time",
    ),
    (
        "dpu-firmware/verbs-ibv/sys/src/verbs.rs",
        "what verbs.h inlines are calls through pointers of C structures",
    ),
    ("dpu-firmware/verbs-ibv/src/address.rs", "sockaddr_storage is a union in all but name"),
    ("dpu-firmware/verbs-ibv/src/completion_queue.rs", "libibverbs is C"),
    ("dpu-firmware/verbs-ibv/src/connection.rs", "librdmacm is C"),
    ("dpu-firmware/verbs-ibv/src/device.rs", "libibverbs is C"),
    (
        "dpu-firmware/verbs-ibv/src/group.rs",
        "work requests are chained C structures, and the device writes to buffers after posting",
    ),
    (
        "dpu-firmware/verbs-ibv/src/host_link.rs",
        "work requests are C structures, and the device writes to buffers after posting",
    ),
    (
        "dpu-firmware/verbs-ibv/src/host_memory.rs",
        "memory is mapped and registered for a peer to write",
    ),
    (
        "dpu-firmware/verbs-ibv/src/memory.rs",
        "memory is mapped and registered for the device to write",
    ),
    (
        "tests/conformance/src/rdma.rs",
        "a peer that is independent of the provider speaks to C itself",
    ),
    ("handlers/src/uring.rs", "the kernel reads and writes buffers after the call has returned"),
];

/// Crates that decide: arguments in, values out. They survive any input.
const DECIDING: &[&str] = &[
    "dpu-firmware/scsi/",
    "dpu-firmware/srp/",
    "dpu-firmware/vscsi/",
    "host-agent/core/",
    "host-agent/mgmt/",
    "offload-proto/",
];

/// Crates that move commands on the card: time is an argument, nothing blocks, nothing is printed.
const MOVING: &[&str] = &[
    "dpu-firmware/platform/",
    "dpu-firmware/dma/",
    "dpu-firmware/backend/",
    "dpu-firmware/target/",
];

/// What the library root of a deciding crate says, whitespace aside.
const DECIDING_HEADERS: &[&str] = &[
    "#![forbid(unsafe_code)]",
    "clippy::indexing_slicing",
    "clippy::unwrap_used",
    "clippy::expect_used",
    "clippy::panic",
    "clippy::arithmetic_side_effects",
];

/// Ways to die on bad input, outside tests.
const DYING: &[&str] = &[".unwrap()", ".expect(", "panic!(", "unreachable!("];

/// The outside world: clocks, files, threads, locks, logs. Neither deciding nor moving code has any.
const OUTSIDE_WORLD: &[&str] = &[
    "std::time::Instant",
    "std::time::SystemTime",
    "Instant::now",
    "SystemTime::now",
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
    "std::thread",
    "std::sync::Mutex",
    "std::sync::RwLock",
    "Mutex<",
    "RwLock<",
    "tracing::",
    "log::",
    "println!(",
    "print!(",
    "eprintln!(",
    "eprint!(",
];

/// The order of a randomised map differs from run to run; the simulator replays by seed.
const RANDOM_ORDER: &[&str] = &["HashMap", "HashSet", "RandomState", "thread_rng"];

/// Marks of unfinished work. Split, so that this file does not find itself.
const UNFINISHED: &[&str] =
    &[concat!("FIX", "ME"), concat!("TO", "DO"), concat!("XX", "X"), concat!("HA", "CK")];

/// Words that say nothing about what a thing is, wherever they stand in a name.
const EMPTY_WORDS: &[&str] =
    &["ctx", "ioctx", "priv", "util", "utils", "misc", "manager", "helper", "helpers"];

/// Names of the standards that hold such a word all the same: the CM of InfiniBand.
const STANDARD_NAMES: &[&str] = &["connection_manager"];

/// Names that say nothing when they stand alone.
const EMPTY_NAMES: &[&str] = &["info", "buf", "common", "internal", "stuff", "tmp"];

/// What a name must not begin with: every function processes something and does something.
const EMPTY_BEGINNINGS: &[&str] = &["process_", "do_"];

/// The longest line, in characters. rustfmt keeps code to 100; this is for the comments that it leaves
/// alone. A literal may be as long as what it shows, and so may the texts that tests compare.
const LINE_CHARACTERS_MAX: usize = 130;

/// Checks every Rust file under `root`.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let sources = source::all(root)?;
    let mut findings: Vec<String> =
        sources.iter().flat_map(|s| check_source(s, UNSAFE_FILES)).collect();
    for (path, _) in UNSAFE_FILES {
        match sources.iter().find(|source| source.path == *path) {
            None => findings
                .push(format!("{path}: is in tidy's list of unsafe files, but is not there")),
            Some(source) if !mentions(&source.code, "unsafe") => findings.push(format!(
                "{path}: is in tidy's list of unsafe files, but holds no unsafe code"
            )),
            Some(_) => {}
        }
    }
    Ok(findings)
}

fn check_source(source: &Source, unsafe_files: &[(&str, &str)]) -> Vec<String> {
    let mut findings = Findings { path: &source.path, found: Vec::new() };
    check_text(source, &mut findings);
    check_unsafe(source, unsafe_files, &mut findings);
    check_names(source, &mut findings);
    let in_source_of =
        |crates: &[&str]| crates.iter().any(|c| source.path.starts_with(&format!("{c}src/")));
    if in_source_of(DECIDING) {
        check_header(source, &mut findings);
        check_words(source, DYING, "a deciding crate survives any input", &mut findings);
    }
    if in_source_of(DECIDING) || in_source_of(MOVING) {
        let why = "time, files, threads, locks and logs are not for this crate";
        check_words(source, OUTSIDE_WORLD, why, &mut findings);
        check_words(source, RANDOM_ORDER, "its order differs from run to run", &mut findings);
    }
    findings.found
}

struct Findings<'a> {
    path: &'a str,
    found: Vec<String>,
}

impl Findings<'_> {
    fn add(&mut self, line: usize, what: impl AsRef<str>) {
        self.found.push(format!("{}:{line}: {}", self.path, what.as_ref()));
    }
}

/// What concerns the text as it is, comments and tests included.
fn check_text(source: &Source, findings: &mut Findings<'_>) {
    // What a module of unit tests holds is said by the module that it tests.
    if !source.text.starts_with("//!") && !source.path.ends_with("/tests.rs") {
        findings.add(1, "opens without `//!`: say what lives here and what may not");
    }
    for (index, (line, is_test)) in source.text.lines().zip(&source.is_test).enumerate() {
        let characters = line.chars().count();
        if characters > LINE_CHARACTERS_MAX && !line.contains('"') && !is_test {
            findings.add(
                index + 1,
                format!("{characters} characters, {LINE_CHARACTERS_MAX} are the most"),
            );
        }
        if let Some(mark) = UNFINISHED.iter().find(|mark| mentions(line, mark)) {
            findings.add(index + 1, format!("`{mark}`: finish it, or open an issue"));
        }
    }
    for (index, line) in source.code.lines().enumerate() {
        for name in ["todo!", "unimplemented!", "dbg!"] {
            if mentions(line, name) {
                findings.add(index + 1, format!("`{name}` is not for committed code"));
            }
        }
        if line.contains("#[ignore]") {
            findings.add(index + 1, "`#[ignore]` without a reason: write #[ignore = \"why\"]");
        }
    }
}

fn check_unsafe(source: &Source, unsafe_files: &[(&str, &str)], findings: &mut Findings<'_>) {
    if unsafe_files.iter().any(|(path, _)| *path == source.path) {
        return;
    }
    for (index, line) in source.code.lines().enumerate() {
        let lifted = line.contains("allow(unsafe_code)") || line.contains("expect(unsafe_code)");
        if lifted || mentions(line, "unsafe") {
            findings.add(index + 1, "unsafe outside the files listed in tests/xtask/src/tidy.rs");
        }
    }
}

fn check_header(source: &Source, findings: &mut Findings<'_>) {
    if !source.path.ends_with("/src/lib.rs") {
        return;
    }
    let code: String = source.code.split_whitespace().collect();
    for header in DECIDING_HEADERS {
        if !code.contains(header) {
            findings.add(1, format!("a deciding crate's lib.rs must have `{header}`"));
        }
    }
}

fn check_words(source: &Source, words: &[&str], why: &str, findings: &mut Findings<'_>) {
    for (number, line) in source.shipping_lines() {
        for word in words.iter().filter(|word| mentions(line, word)) {
            findings.add(number, format!("`{word}`: {why}"));
        }
    }
}

fn check_names(source: &Source, findings: &mut Findings<'_>) {
    let stem = source.path.rsplit('/').next().unwrap_or_default().trim_end_matches(".rs");
    if let Some(why) = empty_name(stem) {
        findings.add(1, format!("the file's name: {why}"));
    }
    for (index, line) in source.code.lines().enumerate() {
        for name in declared(line) {
            if let Some(why) = empty_name(name) {
                findings.add(index + 1, why);
            }
        }
    }
}

/// The names a line declares: what follows a declaring keyword, and what stands before a `:`.
fn declared(line: &str) -> impl Iterator<Item = &str> {
    const KEYWORDS: &[&str] =
        &["fn", "struct", "enum", "trait", "mod", "type", "let", "mut", "const"];
    let words: Vec<(usize, &str)> = words(line).collect();
    let names: Vec<&str> = words
        .iter()
        .enumerate()
        .filter(|(index, (at, word))| {
            let after_keyword = *index > 0 && KEYWORDS.contains(&words[index - 1].1);
            let after = &line[at + word.len()..];
            let before_type = after.starts_with(": ") && !line.contains("#[");
            after_keyword || before_type
        })
        .map(|(_, (_, word))| *word)
        .collect();
    names.into_iter()
}

/// The identifiers of a line and where they begin.
fn words(line: &str) -> impl Iterator<Item = (usize, &str)> {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut at = 0;
    line.split(move |c| !in_word(c)).filter_map(move |word| {
        let begins = at;
        // Everything between two words is one character of ASCII, or longer in its UTF-8 length.
        at += word.len();
        at += line[at..].chars().next().map_or(0, char::len_utf8);
        (!word.is_empty()).then_some((begins, word))
    })
}

/// Why a name says nothing; `None` for a good one. Takes snake_case and CamelCase.
fn empty_name(name: &str) -> Option<String> {
    let mut snake = String::new();
    for character in name.chars() {
        if character.is_uppercase() && !snake.is_empty() && !snake.ends_with('_') {
            snake.push('_');
        }
        snake.extend(character.to_lowercase());
    }
    if EMPTY_NAMES.contains(&snake.as_str()) {
        return Some(format!("`{name}` says nothing about what it is"));
    }
    if let Some(beginning) = EMPTY_BEGINNINGS.iter().find(|b| snake.starts_with(**b)) {
        return Some(format!("`{name}`: `{beginning}` says nothing about what it does"));
    }
    let ours = STANDARD_NAMES.iter().fold(snake, |rest, standard| rest.replace(standard, ""));
    let word = ours.split('_').find(|word| EMPTY_WORDS.contains(word))?;
    Some(format!("`{name}`: `{word}` says nothing about what it is"))
}

/// Whether `line` has `word` not merely as a part of a longer word.
fn mentions(line: &str, word: &str) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let joined_before = word.starts_with(part_of_word) && before.is_some_and(part_of_word);
        let joined_after = word.ends_with(part_of_word) && after.is_some_and(part_of_word);
        !joined_before && !joined_after
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings_in(path: &str, body: &str) -> Vec<String> {
        let text = format!("//! A file.\n{body}");
        let source = Source::new(path.into(), text, false);
        check_source(&source, &[("listed.rs", "because")])
    }

    fn assert_one(path: &str, body: &str, expected: &str) {
        let findings = findings_in(path, body);
        assert_eq!(findings.len(), 1, "{body}: {findings:?}");
        assert!(findings[0].contains(expected), "{findings:?}");
    }

    #[test]
    fn a_file_that_does_not_say_what_it_is_is_found() {
        let source = Source::new("a.rs".into(), "fn a() {}\n".into(), false);
        assert_eq!(check_source(&source, &[]).len(), 1);
        assert!(findings_in("a.rs", "fn a() {}\n").is_empty());
    }

    #[test]
    fn unsafe_is_found_outside_the_listed_files_but_not_in_prose() {
        assert_one("a.rs", "fn a() { unsafe { b() } }", "unsafe outside");
        assert_one("a.rs", "#![allow(unsafe_code)]", "unsafe outside");
        assert!(findings_in("listed.rs", "#![allow(unsafe_code)]\nunsafe fn a() {}").is_empty());
        assert!(findings_in("a.rs", "// unsafe\nfn a() { b(\"unsafe \") }").is_empty());
        assert!(findings_in("a.rs", "#![forbid(unsafe_code)]").is_empty());
    }

    #[test]
    fn unfinished_work_is_found_in_code_and_comments() {
        assert_one("a.rs", &format!("// {}: later", UNFINISHED[0]), "finish it");
        assert_one("a.rs", "fn a() { todo!() }", "todo!");
        assert_one("a.rs", "fn a() { dbg!(1); }", "dbg!");
        assert_one("a.rs", "#[ignore]\nfn a() {}", "without a reason");
    }

    #[test]
    fn deciding_code_may_not_die_but_its_tests_may() {
        let path = "dpu-firmware/scsi/src/cdb.rs";
        assert_one(path, "fn a() { b().unwrap() }", "survives any input");
        assert_one(path, "fn a() { b().expect(\"c\") }", "survives any input");
        let test = "#[cfg(test)]\nmod tests {\n    fn a() { b().unwrap() }\n}";
        assert!(findings_in(path, test).is_empty());
        assert!(findings_in("host-agent/agent/src/a.rs", "fn a() { b().unwrap() }").is_empty());
    }

    #[test]
    fn deciding_and_moving_code_has_no_outside_world() {
        assert_one("dpu-firmware/srp/src/iu.rs", "use std::fs;", "not for this crate");
        assert_one("dpu-firmware/target/src/a.rs", "fn a() { println!(\"b\") }", "not for");
        assert_one("host-agent/core/src/a.rs", "use std::collections::HashMap;", "run to run");
        assert!(findings_in("host-agent/agent/src/a.rs", "use std::fs;").is_empty());
    }

    #[test]
    fn a_deciding_crates_root_must_carry_its_lints() {
        let headers = "#![forbid(unsafe_code)]\n#![cfg_attr(not(test), deny(clippy::indexing_slicing, \
            clippy::unwrap_used,\nclippy::expect_used, clippy::panic, clippy::arithmetic_side_effects))]";
        assert!(findings_in("dpu-firmware/scsi/src/lib.rs", headers).is_empty());
        let without = headers.replace("clippy::panic,", "");
        assert_one("dpu-firmware/scsi/src/lib.rs", &without, "clippy::panic");
    }

    #[test]
    fn empty_names_are_found_where_they_are_declared_only() {
        assert_one("a.rs", "fn process_command() {}", "process_");
        assert_one("a.rs", "struct QueueManager;", "manager");
        assert!(findings_in("a.rs", "struct ConnectionManager;").is_empty());
        assert_one("a.rs", "fn a(ctx: u32) {}", "ctx");
        assert_one("a.rs", "fn a() { let mut buf = 1; }", "buf");
        assert_one("src/util.rs", "fn a() {}", "the file's name");
        assert!(findings_in("a.rs", "fn a() { tracing::info!(b); b.do_handshake(); }").is_empty());
        assert!(findings_in("a.rs", "fn privilege(information: u32, door: u8) {}").is_empty());
    }

    #[test]
    fn a_long_line_is_found() {
        assert_one("a.rs", &format!("// {}", "a".repeat(LINE_CHARACTERS_MAX)), "characters");
    }
}
