//! Go's `time.ParseDuration`.

use std::time::Duration;

/// `1s`, `1.5m`, `1h2m3s`, `-1s`; the sign is lost, as nothing here waits for less than no time.
#[must_use]
pub fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, unit) = rest.split_at_checked(end)?;
        // Go takes `1.` and `.5`, but neither `.` nor `1.2.3`.
        if !number.contains(|c: char| c.is_ascii_digit()) || number.matches('.').count() > 1 {
            return None;
        }
        let number: f64 = format!("0{number}0")
            .parse()
            .ok()
            .filter(|_| number.contains('.'))
            .or_else(|| number.parse().ok())?;
        let end = unit.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit.len());
        let (unit, next) = unit.split_at_checked(end)?;
        seconds += number
            * match unit {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = next;
    }
    // Go counts nanoseconds in 64 bits.
    (seconds < 9_223_372_036.0).then(|| Duration::try_from_secs_f64(seconds).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_in_go() {
        let ms = |ms| Some(Duration::from_millis(ms));
        for (text, wanted) in [
            ("1s", ms(1000)),
            ("1.5s", ms(1500)),
            ("1m30s", ms(90_000)),
            ("500ms", ms(500)),
            (".5s", ms(500)),
            ("1.s", ms(1000)),
            ("0", ms(0)),
            ("-1s", ms(1000)),
            ("1", None),
            ("", None),
            ("s", None),
            (".s", None),
            ("1 s", None),
            ("1d", None),
            ("1.2.3s", None),
            ("9999999999999h", None),
        ] {
            assert_eq!(parse(text), wanted, "{text}");
        }
    }
}
