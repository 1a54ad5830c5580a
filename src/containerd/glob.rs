//! Go's `filepath.Clean` and `filepath.Glob`, below a root.

use anyhow::Result;

use super::config::Files;

/// An absolute path without its slash, and without `.`, `..` and empty parts.
#[must_use]
pub fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// What is there that fits a pattern, sorted folder by folder; `None` for a pattern that Go refuses.
///
/// # Errors
/// When a folder that is there cannot be listed.
pub fn find(root: &dyn Files, pattern: &str) -> Result<Option<Vec<String>>> {
    if fits(pattern, "").is_none() {
        return Ok(None);
    }
    let mut found = vec![String::new()];
    for part in pattern.split('/') {
        let mut next = Vec::new();
        for folder in found {
            let join =
                |name: &str| if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
            if part.contains(['*', '?', '[', '\\']) {
                let names = root.list(&folder)?;
                next.extend(
                    names.iter().filter(|name| fits(part, name) == Some(true)).map(|name| join(name)),
                );
            } else if root.exists(&join(part)) {
                next.push(join(part));
            }
        }
        found = next;
    }
    Ok(Some(found))
}

/// Go's `filepath.Match`; `None` for a malformed pattern.
pub fn fits(pattern: &str, name: &str) -> Option<bool> {
    let pattern: Vec<char> = pattern.chars().collect();
    let tokens = tokens(&pattern)?;
    let name: Vec<char> = name.chars().collect();
    // The positions in the name that the tokens so far can end at.
    let mut ends = vec![false; name.len() + 1];
    if let Some(first) = ends.first_mut() {
        *first = true;
    }
    for token in &tokens {
        let mut next = vec![false; name.len() + 1];
        let mut within = false;
        for (at, end) in next.iter_mut().enumerate() {
            let before = at.checked_sub(1).and_then(|before| Some((*ends.get(before)?, *name.get(before)?)));
            match token {
                Token::Any => {
                    within = within && before.is_none_or(|(_, last)| last != '/');
                    within |= ends.get(at).copied().unwrap_or(false);
                    *end = within;
                }
                Token::One { negated, ranges } => {
                    *end = before.is_some_and(|(reached, last)| {
                        reached
                            && last != '/'
                            && *negated != ranges.iter().any(|(low, high)| (*low..=*high).contains(&last))
                    });
                }
                Token::Exact(wanted) => {
                    *end = before.is_some_and(|(reached, last)| reached && last == *wanted)
                }
            }
        }
        ends = next;
    }
    Some(ends.last().copied().unwrap_or(false))
}

enum Token {
    Any,
    One { negated: bool, ranges: Vec<(char, char)> },
    Exact(char),
}

fn tokens(pattern: &[char]) -> Option<Vec<Token>> {
    let mut rest = pattern.iter().copied().peekable();
    let mut tokens = Vec::new();
    while let Some(character) = rest.next() {
        tokens.push(match character {
            '*' => Token::Any,
            '?' => Token::One { negated: true, ranges: Vec::new() },
            '\\' => Token::Exact(rest.next()?),
            '[' => {
                let negated = rest.next_if_eq(&'^').is_some();
                let mut ranges = Vec::new();
                loop {
                    if rest.peek() == Some(&']') && !ranges.is_empty() {
                        rest.next();
                        break;
                    }
                    let mut end = || match rest.next()? {
                        '-' | ']' => None,
                        '\\' => rest.next(),
                        other => Some(other),
                    };
                    let low = end()?;
                    let high = if rest.next_if_eq(&'-').is_some() {
                        match rest.next()? {
                            '-' | ']' => return None,
                            '\\' => rest.next()?,
                            other => other,
                        }
                    } else {
                        low
                    };
                    ranges.push((low, high));
                }
                Token::One { negated, ranges }
            }
            other => Token::Exact(other),
        });
    }
    Some(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_as_in_go() {
        for (pattern, name, wanted) in [
            ("*.toml", "a.toml", Some(true)),
            ("*.toml", "a.toml.bak", Some(false)),
            ("*", "", Some(true)),
            ("a*b*c", "aXbYbc", Some(true)),
            ("*", "a/b", Some(false)),
            ("[0-9]*", "10-x", Some(true)),
            ("[^0-9]*", "10-x", Some(false)),
            ("?*", "", Some(false)),
            ("a\\**", "a*", Some(true)),
            ("[*", "x", None),
            ("[]a]*", "a", None),
            ("*\\", "a", None),
        ] {
            assert_eq!(fits(pattern, name), wanted, "{pattern} {name}");
        }
    }

    #[test]
    fn paths_are_cleaned_as_in_go() {
        for (path, wanted) in [("a//b/./c/../d", "a/b/d"), ("../../a", "a"), ("/", ""), ("a/", "a")] {
            assert_eq!(clean(path), wanted);
        }
    }
}
