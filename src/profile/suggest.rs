//! "Did you mean".

/// The one of `allowed` that `text` was probably meant to be.
#[must_use]
pub fn nearest<'a>(text: &str, allowed: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Nothing that long is a slip of the finger, and the distance costs the product of the lengths.
    if text.len() > 64 {
        return None;
    }
    let lower = text.to_lowercase().replace('-', "_");
    let (distance, word) = allowed
        .into_iter()
        .map(|word| (distance(&lower, word), word))
        .min_by_key(|(distance, _)| *distance)?;
    let limit = (word.chars().count().max(lower.chars().count()) / 3).max(1);
    (distance <= limit).then_some(word)
}

/// Insertions, deletions, replacements and swaps of neighbours (optimal string alignment).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=to.len()).collect();
    let mut last_char = None;
    for (row, a) in from.chars().enumerate() {
        let mut next = vec![row + 1];
        let mut left = row + 1;
        let mut previous = None;
        for (column, b) in to.iter().enumerate() {
            let at = |line: &[usize], index: usize| line.get(index).copied().unwrap_or(usize::MAX - 1);
            let mut cost =
                (left + 1).min(at(&last, column + 1) + 1).min(at(&last, column) + usize::from(a != *b));
            if last_char == Some(*b) && previous == Some(a) && column > 0 {
                cost = cost.min(at(&before, column - 1) + 1);
            }
            next.push(cost);
            left = cost;
            previous = Some(*b);
        }
        before = std::mem::replace(&mut last, next);
        last_char = Some(a);
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        let allowed = ["upstreams", "network", "cache", "containerd", "verify", "port"];
        for (text, wanted) in [
            ("upstream", Some("upstreams")),
            ("Cache", Some("cache")),
            ("cahce", Some("cache")),
            ("prot", Some("port")),
            ("contianerd", Some("containerd")),
            ("registries", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(text, allowed), wanted, "{text}");
        }
        assert_eq!(distance("ab", "ba"), 1);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
