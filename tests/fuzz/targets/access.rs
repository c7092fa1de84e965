//! Any initiator pattern against any name: the answer of the plain recursive definition.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lunar_offload_proto::access;

/// What `*` and `?` mean, written down as it is said.
fn means(pattern: &[char], name: &[char]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        (['*', rest @ ..], _) => {
            means(rest, name) || (!name.is_empty() && means(pattern, &name[1..]))
        }
        (['?', pattern @ ..], [_, name @ ..]) => means(pattern, name),
        ([wanted, pattern @ ..], [given, name @ ..]) => {
            wanted.eq_ignore_ascii_case(given) && means(pattern, name)
        }
        _ => false,
    }
}

fuzz_target!(|input: (&str, &str)| {
    let (pattern, name) = input;
    let found = access::matches(pattern, name);
    let stars = pattern.matches('*').count();
    // The definition takes exponential time; the matcher must not, so it alone sees the rest.
    if stars <= 3 && name.len() <= 24 {
        let (plain, negated) = match pattern.strip_prefix('!') {
            Some(rest) => (rest, true),
            None => (pattern, false),
        };
        let characters = |text: &str| text.chars().collect::<Vec<char>>();
        assert_eq!(found, means(&characters(plain), &characters(name)) != negated);
    }
});
