//! Which access group an initiator belongs to: patterns as SCST matches them.
//!
//! Only matching lives here. Groups are edited on the host and matched on the card.

/// Whether `pattern` matches `name`: `*` stands for any run of characters, `?` for any one, a leading
/// `!` turns the answer round; ASCII letters match in either case, as in SCST. Everything else stands
/// for itself. Takes at most `pattern.len() * name.len()` steps.
#[must_use]
pub fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix('!') {
        Some(rest) => !matches_plain(rest, name),
        None => matches_plain(pattern, name),
    }
}

/// The first of `groups` one of whose patterns matches `name`; `None` is the target's default group.
pub fn find_group<'a, P>(groups: impl IntoIterator<Item = P>, name: &str) -> Option<usize>
where
    P: IntoIterator<Item = &'a str>,
{
    groups
        .into_iter()
        .position(|patterns| patterns.into_iter().any(|pattern| matches(pattern, name)))
}

/// The greedy matcher: only the last `*` ever has to be tried again, because a longer match of an
/// earlier one can give the later ones nothing that they could not reach themselves.
fn matches_plain(pattern: &str, name: &str) -> bool {
    let mut wanted = pattern.chars();
    let mut given = name.chars();
    // Where to go on when a character does not fit: behind the last `*`, and the name from which it
    // was tried.
    let mut again: Option<(core::str::Chars<'_>, core::str::Chars<'_>)> = None;
    loop {
        let given_before = given.clone();
        match (wanted.next(), given.next()) {
            (None, None) => return true,
            (Some('*'), _) => {
                given = given_before;
                again = Some((wanted.clone(), given.clone()));
            }
            (Some('?'), Some(_)) => {}
            (Some(w), Some(g)) if w.eq_ignore_ascii_case(&g) => {}
            (_, found) => {
                let Some((after_star, tried)) = &mut again else { return false };
                // The name is at its end and the rest of the pattern is not matched: a longer `*`
                // leaves even less for it.
                if found.is_none() || tried.next().is_none() {
                    return false;
                }
                wanted = after_star.clone();
                given = tried.clone();
            }
        }
    }
}

#[cfg(test)]
mod tests;
