use proptest::prelude::*;

use super::*;

/// The definition, word for word; exponential, so only for short inputs.
fn naive(pattern: &[char], name: &[char]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some(('*', rest)), None) => naive(rest, name),
        (Some(('*', rest)), Some((_, later))) => naive(rest, name) || naive(pattern, later),
        (Some(('?', rest)), Some((_, later))) => naive(rest, later),
        (Some((p, rest)), Some((n, later))) => p.eq_ignore_ascii_case(n) && naive(rest, later),
        _ => false,
    }
}

fn naive_with_negation(pattern: &str, name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    match pattern.strip_prefix('!') {
        Some(rest) => !naive(&rest.chars().collect::<Vec<_>>(), &name),
        None => naive(&pattern.chars().collect::<Vec<_>>(), &name),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn matches_what_the_definition_matches(pattern in "!?[aAbé*?!]{0,8}", name in "[aBé!]{0,9}") {
        prop_assert_eq!(matches(&pattern, &name), naive_with_negation(&pattern, &name));
    }

    #[test]
    fn every_name_matches_itself_and_the_star(name in "[a-zA-Z0-9:.]{0,40}") {
        prop_assert!(matches(&name, &name.to_ascii_uppercase()));
        prop_assert!(matches("*", &name));
        prop_assert!(!matches("!*", &name));
    }
}

#[test]
fn gids_and_addresses_match_in_either_case() {
    let gid = "fe80:0000:0000:0000:0002:C903:0005:F1A3";
    assert!(matches("fe80:*:0005:f1a3", gid));
    assert!(matches("FE80:????:0000:0000:*", gid));
    assert!(!matches("fe81:*", gid));
    assert!(matches("!fe81:*", gid));
    assert!(matches("10.0.*.7", "10.0.255.7"));
    assert!(!matches("10.0.*.7", "10.0.255.70"));
}

#[test]
fn many_stars_cost_no_more_than_the_product_of_the_lengths() {
    let pattern = format!("{}b", "a*".repeat(2000));
    let name = "a".repeat(4000);
    assert!(!matches(&pattern, &name));
    assert!(matches(&pattern, &format!("{name}b")));
}

#[test]
fn the_first_group_with_a_matching_pattern_wins() {
    let groups: [&[&str]; 3] = [&["x*", "host1"], &["*1"], &["!nobody"]];
    let find = |name| find_group(groups.iter().map(|group| group.iter().copied()), name);
    assert_eq!(find("host1"), Some(0));
    assert_eq!(find("other1"), Some(1));
    assert_eq!(find("other2"), Some(2));
    assert_eq!(find("nobody"), None);
}
