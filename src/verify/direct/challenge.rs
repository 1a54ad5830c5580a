//! `WWW-Authenticate`, as far as registries use it (RFC 9110, 11.6.1).

/// What a registry wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

impl Challenge {
    /// The one that a client of registries meets: a token where there is a choice.
    pub(super) fn read<'a>(values: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut basic = None;
        for value in values {
            let (scheme, parameters) = value.trim().split_once(' ').unwrap_or((value.trim(), ""));
            if scheme.eq_ignore_ascii_case("bearer") {
                let found = pairs(parameters);
                let get = |name: &str| {
                    let found = found.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                    found.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
                };
                if let Some(realm) = get("realm") {
                    return Some(Self::Bearer { realm, service: get("service") });
                }
            } else if scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Self::Basic);
            }
        }
        basic
    }
}

/// `name="value", name=value`; in quotes a backslash takes the next character as it is.
fn pairs(text: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut rest = text.chars().peekable();
    loop {
        let mut name = String::new();
        while let Some(c) = rest.next_if(|c| *c != '=') {
            if !matches!(c, ',' | ' ' | '\t') {
                name.push(c);
            }
        }
        if rest.next().is_none() {
            return pairs;
        }
        let mut value = String::new();
        if rest.next_if_eq(&'"').is_some() {
            while let Some(c) = rest.next() {
                match c {
                    '"' => break,
                    '\\' => value.extend(rest.next()),
                    c => value.push(c),
                }
            }
        } else {
            while let Some(c) = rest.next_if(|c| *c != ',') {
                value.push(c);
            }
        }
        pairs.push((name, value.trim().to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Option<Challenge> {
        Some(Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) })
    }

    #[test]
    fn challenges_of_real_registries() {
        for (values, wanted) in [
            (
                &["Bearer realm=\"https://auth.docker.io/token\",service=\"registry.docker.io\""][..],
                bearer("https://auth.docker.io/token", Some("registry.docker.io")),
            ),
            (
                &["bearer realm=\"https://a/t\", scope=\"repository:x:pull,push\""],
                bearer("https://a/t", None),
            ),
            (&["Bearer realm=https://a/t,service=a b"], bearer("https://a/t", Some("a b"))),
            (&["Basic realm=\"x\"", "Bearer realm=\"https://a/t\""], bearer("https://a/t", None)),
            (&["Basic realm=\"Sonatype\""], Some(Challenge::Basic)),
            (&["BASIC"], Some(Challenge::Basic)),
            (&["Bearer service=\"x\""], None),
            (&["Negotiate"], None),
            (&[], None),
        ] {
            assert_eq!(Challenge::read(values.iter().copied()), wanted, "of {values:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(text in ".*") {
            let _ = Challenge::read([format!("Bearer {text}").as_str()].into_iter());
        }
    }
}
