//! Which texts of a profile are secrets. Known before anything is validated, since a report on a profile that
//! is wrong shows its lines, too.

use std::ops::Range;

use super::suggest::nearest;

/// Keys that say where a secret is, not what it is.
const REFERENCES: [&str; 4] = ["file", "credential", "env", "credential_helper"];

/// Is the value of `key` secret, in a map that is `within` something secret?
pub(super) fn is_secret(key: &str, within: bool) -> bool {
    if REFERENCES.contains(&key) {
        return false;
    }
    // A misspelt password is one, too.
    if within || nearest(key, ["password"]).is_some() {
        return true;
    }
    let key = key.to_ascii_lowercase();
    let words =
        ["pass", "pwd", "secret", "token", "authorization", "headers", "accountkey", "accesskey", "psw"];
    words.iter().any(|word| key.contains(word))
}

pub(super) fn is_url_with_credentials(text: &str) -> bool {
    text.split_once("://").is_some_and(|(_, rest)| rest.contains('@'))
}

/// In a text that is no YAML: everything after the colon of a line that names a secret, and all lines further in
/// below it. A quote that is never closed hides the rest.
pub(super) fn in_broken_text(text: &str) -> Vec<Range<usize>> {
    let mut secrets = Vec::new();
    // The indentation of the line whose value goes on.
    let mut open: Option<usize> = None;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let range = at..at + line.trim_end().len();
        at += line.len();
        let indent = line.len() - line.trim_start().len();
        if open.is_some_and(|outer| indent > outer || line.trim().is_empty()) {
            secrets.push(range);
            continue;
        }
        open = None;
        // Any word before a colon, so that flow maps count, too.
        let colon = line.match_indices(':').map(|(colon, _)| colon).find(|colon| {
            let word = line.get(..*colon).unwrap_or_default();
            let word = word.rsplit(['{', ',', '[']).next().unwrap_or(word);
            is_secret(word.trim().trim_matches(['"', '\'', '-', '?', ' ']), false)
        });
        let Some(colon) = colon else { continue };
        let value = line.get(colon + 1..).unwrap_or_default().trim();
        secrets.push(range.start + colon..range.end);
        if value.starts_with(['"', '\'']) && value.matches(value.get(..1).unwrap_or("\"")).count() < 2 {
            secrets.push(at..text.len());
            break;
        }
        open = Some(indent);
    }
    secrets
}
