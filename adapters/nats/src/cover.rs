//! The algebra of subjects that streams need: what covers two patterns, and what both match.

use anywire::Pattern;

/// The least pattern that covers both; they overlap.
pub(crate) fn join(one: &Pattern, other: &Pattern) -> Pattern {
    let (mut one, mut other) = (tokens(one), tokens(other));
    let mut joined = Vec::new();
    loop {
        match (one.next(), other.next()) {
            (Some(a), Some(b)) if a == b => joined.push(a),
            (None, None) => break,
            (Some(a), Some(b)) if a != ">" && b != ">" => joined.push("*"),
            // One goes on where the other may be anything.
            _ => {
                joined.push(">");
                break;
            }
        }
    }
    parse(&joined)
}

/// The pattern that matches what both match, if anything.
pub(crate) fn meet(one: &Pattern, other: &Pattern) -> Option<Pattern> {
    if !one.overlaps(other) {
        return None;
    }
    let (mut one, mut other) = (tokens(one), tokens(other));
    let mut common = Vec::new();
    loop {
        match (one.next(), other.next()) {
            (Some(">"), Some(b)) => {
                common.push(b);
                common.extend(other);
                break;
            }
            (Some(a), Some(">")) => {
                common.push(a);
                common.extend(one);
                break;
            }
            (Some("*"), Some(token)) | (Some(token), Some(_)) => common.push(token),
            _ => break,
        }
    }
    Some(parse(&common))
}

/// A stream's list of subjects with `pattern` in it: none overlaps another, as the server demands, and all that was
/// covered is.
pub(crate) fn insert(subjects: &[Pattern], pattern: &Pattern) -> Vec<Pattern> {
    let mut widest = pattern.clone();
    let mut rest = subjects.to_vec();
    // What is widened may meet what it did not before.
    while let Some(at) = rest.iter().position(|subject| subject.overlaps(&widest)) {
        widest = join(&widest, &rest.swap_remove(at));
    }
    rest.push(widest);
    rest.sort_by(|a, b| a.wildcards().cmp(b.wildcards()));
    rest
}

fn tokens(pattern: &Pattern) -> std::str::Split<'_, char> {
    pattern.wildcards().split('.')
}

fn parse(tokens: &[&str]) -> Pattern {
    // At most as long as one of the patterns that they come from.
    Pattern::parse_any(&tokens.join(".")).expect("tokens of patterns make a pattern")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use anywire::Subject;
    use proptest::prelude::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse_any(text).unwrap()
    }

    fn inserted(subjects: &[&str], new: &str) -> Vec<String> {
        let subjects: Vec<_> = subjects.iter().map(|text| pattern(text)).collect();
        let list = insert(&subjects, &pattern(new));
        list.iter().map(|p| p.wildcards().to_owned()).collect()
    }

    #[test]
    fn overlapping_subjects_are_widened_and_no_more() {
        assert_eq!(inserted(&["shop.*.placed"], "shop.eu.*"), ["shop.*.*"]);
        assert_eq!(inserted(&["shop.a"], "shop.b"), ["shop.a", "shop.b"]);
        assert_eq!(inserted(&["shop.a.b", "shop.c"], "shop.>"), ["shop.>"]);
        assert_eq!(inserted(&["shop.>"], "shop.a"), ["shop.>"]);
        // Widened to `a.*.*`, it meets `a.x.y`, too.
        assert_eq!(inserted(&["a.*.b", "a.x.y"], "a.c.*"), ["a.*.*"]);
    }

    #[test]
    fn what_two_patterns_share_is_a_pattern() {
        let meet = |a: &str, b: &str| {
            let both = meet(&pattern(a), &pattern(b))?;
            Some(both.wildcards().to_owned())
        };
        assert_eq!(meet("*.dead.>", "x.dead.letter").unwrap(), "x.dead.letter");
        assert_eq!(meet("*.b.*", "a.>").unwrap(), "a.b.*");
        assert_eq!(meet(">", "a.*").unwrap(), "a.*");
        assert_eq!(meet("a.b", "a.c"), None);
    }

    fn patterns() -> impl Strategy<Value = Pattern> {
        let token = prop_oneof![Just("a"), Just("b"), Just("*")];
        (prop::collection::vec(token, 0..4), any::<bool>()).prop_map(|(mut tokens, tail)| {
            if tail || tokens.is_empty() {
                tokens.push(">");
            }
            pattern(&tokens.join("."))
        })
    }

    fn subjects() -> impl Strategy<Value = Subject> {
        prop::collection::vec(prop_oneof![Just("a"), Just("b"), Just("c")], 1..5)
            .prop_map(|tokens| Subject::parse(&tokens.join(".")).unwrap())
    }

    proptest! {
        #[test]
        fn a_join_covers_both(p in patterns(), q in patterns()) {
            prop_assume!(p.overlaps(&q));
            let joined = join(&p, &q);
            prop_assert!(joined.covers(&p) && joined.covers(&q), "{joined}");
        }

        #[test]
        fn a_meet_matches_what_both_match(p in patterns(), q in patterns(), s in subjects()) {
            let both = meet(&p, &q).is_some_and(|both| both.matches(&s));
            prop_assert_eq!(both, p.matches(&s) && q.matches(&s));
        }

        #[test]
        fn a_list_never_overlaps_and_loses_nothing(all in prop::collection::vec(patterns(), 1..6)) {
            let mut list = Vec::new();
            for pattern in &all {
                list = insert(&list, pattern);
            }
            for (at, one) in list.iter().enumerate() {
                prop_assert!(list[at + 1..].iter().all(|other| !one.overlaps(other)));
            }
            for pattern in &all {
                prop_assert!(list.iter().any(|one| one.covers(pattern)));
            }
        }
    }
}
