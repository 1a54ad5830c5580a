//! What YAML readers take a scalar without quotes for. YAML 1.1 (PyYAML, and so cloud-init, netplan and
//! Ansible) and YAML 1.2 differ; a profile means the same to all of them or is refused.

/// Something other than text, to one reader at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    Bool,
    Number,
    /// `22:22` is 1342 in YAML 1.1.
    Base60,
    Date,
}

impl Meaning {
    /// What `text` is taken for.
    pub(crate) fn name(self, text: &str) -> &'static str {
        match self {
            Self::Bool if matches!(text, "true" | "false") => "a boolean",
            Self::Bool => "a boolean to some YAML readers",
            Self::Number => "a number",
            Self::Base60 => "a number in base 60 to some YAML readers",
            Self::Date => "a date to some YAML readers",
        }
    }
}

pub(crate) fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// The boolean that any reader takes `text` for.
pub(crate) fn boolean(text: &str) -> Option<bool> {
    let one_of = |words: [&str; 4]| {
        words.iter().any(|word| {
            // `no`, `No` and `NO`, but not `nO`.
            text == *word || text == word.to_ascii_uppercase() || {
                text.eq_ignore_ascii_case(word)
                    && text.starts_with(|c: char| c.is_ascii_uppercase())
                    && text.get(1..) == word.get(1..)
            }
        })
    };
    if one_of(["true", "yes", "on", "y"]) {
        Some(true)
    } else if one_of(["false", "no", "off", "n"]) {
        Some(false)
    } else {
        None
    }
}

/// `None`: text to every reader.
pub(crate) fn meaning(text: &str) -> Option<Meaning> {
    if boolean(text).is_some() {
        return Some(Meaning::Bool);
    }
    let number = text.strip_prefix(['-', '+']).unwrap_or(text);
    if matches!(number, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return Some(Meaning::Number);
    }
    if !number.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let (head, rest) = number.split_at_checked(2).unwrap_or((number, ""));
    let based = |allowed: fn(&u8) -> bool| !rest.is_empty() && rest.bytes().all(|b| b == b'_' || allowed(&b));
    if (head == "0x" && based(u8::is_ascii_hexdigit))
        || (matches!(head, "0o" | "0b") && based(u8::is_ascii_digit))
    {
        return Some(Meaning::Number);
    }
    if is_float(number) {
        return Some(Meaning::Number);
    }
    if is_base60(number) {
        return Some(Meaning::Base60);
    }
    is_date(text).then_some(Meaning::Date)
}

/// Digits with at most one dot and an exponent; `_` is allowed in YAML 1.1.
fn is_float(text: &str) -> bool {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['-', '+']).unwrap_or(exponent))),
        None => (text, None),
    };
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let some_digit = mantissa.bytes().any(|b| b.is_ascii_digit());
    some_digit && digits(whole) && digits(fraction) && exponent.is_none_or(|e| !e.is_empty() && digits(e))
}

fn is_base60(text: &str) -> bool {
    let mut parts = text.split(':');
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    let first = parts.next().is_some_and(digits);
    let mut rest = parts.peekable();
    let below_60 = |part: &str| {
        let whole = part.split('.').next().unwrap_or(part);
        (1..=2).contains(&whole.len()) && digits(whole) && whole.parse().is_ok_and(|number: u8| number < 60)
    };
    first && rest.peek().is_some() && rest.all(below_60)
}

/// `2026-01-01` and everything that starts like it.
fn is_date(text: &str) -> bool {
    let mut parts = text.splitn(3, '-');
    let digits = |part: Option<&str>, length: std::ops::RangeInclusive<usize>| {
        part.is_some_and(|part| length.contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit()))
    };
    digits(parts.next(), 4..=4)
        && digits(parts.next(), 1..=2)
        && parts.next().is_some_and(|day| day.starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_mean_what_the_worst_reader_says() {
        for (text, wanted) in [
            ("no", Some(Meaning::Bool)),
            ("On", Some(Meaning::Bool)),
            ("nO", None),
            ("never", None),
            ("010", Some(Meaning::Number)),
            ("5_000", Some(Meaning::Number)),
            ("5000.0", Some(Meaning::Number)),
            ("-1", Some(Meaning::Number)),
            ("1e3", Some(Meaning::Number)),
            ("0x1f", Some(Meaning::Number)),
            (".5", Some(Meaning::Number)),
            ("22:22", Some(Meaning::Base60)),
            ("190:20:30", Some(Meaning::Base60)),
            ("22:60", None),
            ("2026-01-01", Some(Meaning::Date)),
            ("10.0.20.10", None),
            ("10.0.20.10/24", None),
            ("fd00::1", None),
            ("60s", None),
            ("80GiB", None),
            (".", None),
            ("e", None),
            ("", None),
            ("0é", None),
        ] {
            assert_eq!(meaning(text), wanted, "{text}");
        }
    }
}
