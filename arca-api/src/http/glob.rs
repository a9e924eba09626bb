// SPDX-License-Identifier: Apache-2.0
//! Patterns of file names as Go's `path.Match` reads them: `*`, `?`, `[a-z]`, `[^a]`, `\\` before a sign that means itself.

/// Whether the whole of `text` fits; `None` for a pattern that is none. A star does not cross a slash.
pub fn matches(text: &str, pattern: &str) -> Option<bool> {
    let (text, pattern): (Vec<char>, Vec<char>) = (text.chars().collect(), pattern.chars().collect());
    well_formed(&pattern).then(|| fits(&text, &pattern))
}

fn well_formed(mut pattern: &[char]) -> bool {
    while let Some(first) = pattern.first() {
        let used = match first {
            '\\' if pattern.len() < 2 => return false,
            '\\' => 2,
            '[' => match class(pattern, None) {
                Some((_, used)) => used,
                None => return false,
            },
            _ => 1,
        };
        pattern = pattern.get(used..).unwrap_or_default();
    }
    true
}

fn fits(text: &[char], pattern: &[char]) -> bool {
    let Some(first) = pattern.first() else { return text.is_empty() };
    match first {
        '*' => {
            let rest = pattern.get(1..).unwrap_or_default();
            let most = text.iter().position(|sign| *sign == '/').unwrap_or(text.len());
            (0..=most).any(|taken| fits(text.get(taken..).unwrap_or_default(), rest))
        }
        _ => {
            let Some(sign) = text.first() else { return false };
            let (good, used) = match first {
                '?' => (*sign != '/', 1),
                '[' => class(pattern, Some(*sign)).unwrap_or((false, 1)),
                '\\' => (pattern.get(1) == Some(sign), 2),
                plain => (plain == sign, 1),
            };
            good && fits(text.get(1..).unwrap_or_default(), pattern.get(used..).unwrap_or_default())
        }
    }
}

/// Whether a sign is of the class that `pattern` begins with, and how long that is.
fn class(pattern: &[char], sign: Option<char>) -> Option<(bool, usize)> {
    let mut at = 1;
    let negated = pattern.get(at) == Some(&'^');
    at += usize::from(negated);
    let (mut found, mut any) = (false, false);
    loop {
        if pattern.get(at) == Some(&']') && any {
            return Some((found != negated, at + 1));
        }
        let mut one = || {
            let mut sign = *pattern.get(at)?;
            if sign == '\\' {
                at += 1;
                sign = *pattern.get(at)?;
            } else if sign == '-' || sign == ']' {
                return None;
            }
            at += 1;
            Some(sign)
        };
        let low = one()?;
        let high = if pattern.get(at) == Some(&'-') {
            at += 1;
            let mut high = *pattern.get(at)?;
            if high == '\\' {
                at += 1;
                high = *pattern.get(at)?;
            } else if high == '-' || high == ']' {
                return None;
            }
            at += 1;
            high
        } else {
            low
        };
        any = true;
        found |= sign.is_some_and(|sign| (low..=high).contains(&sign));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_gos() {
        for (text, pattern, wanted) in [
            ("busybox:1", "busybox:1", Some(true)),
            ("busybox:1", "busy*", Some(true)),
            ("a/b", "*", Some(false)),
            ("a/b", "*/b", Some(true)),
            ("f:1", "f:?", Some(true)),
            ("f:1", "f:[0-2]", Some(true)),
            ("f:3", "f:[^0-2]", Some(true)),
            ("f*", "f\\*", Some(true)),
            ("f", "[", None),
            ("f", "f\\", None),
            ("f", "[]", None),
            ("f", "[z-", None),
            ("", "*", Some(true)),
        ] {
            assert_eq!(matches(text, pattern), wanted, "{text} {pattern}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_pattern_panics(text in ".{0,12}", pattern in ".{0,12}") {
            let _ = matches(&text, &pattern);
        }
    }
}
