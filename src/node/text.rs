//! Newtypes that can only be made from valid text. Each `parse` says what was wanted in its error.
//!
//! Every character a type lets through is safe wherever the value ends up: in a file name, a unit, an INI file,
//! TOML or YAML. So none of them lets white space, quotes, `%`, `$`, control characters or anything beyond
//! ASCII through ([`Calendar`] has its spaces).

/// A value that is written as text in a profile. The constants describe it to people and to the JSON Schema;
/// `parse` decides.
pub trait Text: Sized {
    /// One line for the schema.
    const DESCRIPTION: &'static str;
    /// What the schema can say of `parse`: it may let through more than `parse`, never less.
    const PATTERN: &'static str;
    const EXAMPLES: &'static [&'static str];

    /// # Errors
    /// What was wanted, in one line.
    fn parse(text: &str) -> Result<Self, String>;
}

/// Makes a newtype over `String` with read access and `Display`. What is valid stays with the type's `Text`.
macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// # Errors
            /// What was wanted, in one line.
            pub fn parse(text: &str) -> Result<Self, String> {
                <Self as Text>::parse(text)
            }

            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

mod calendar;
mod foreign;
mod local;
mod remote;
mod trust;
mod words;
pub use calendar::*;
pub use local::*;
pub use remote::*;
pub use trust::*;
pub use words::*;

/// Names the first character of `text` that is not `allowed`, in a way that shows look-alikes and control
/// characters for what they are.
fn only(text: &str, allowed: impl Fn(char) -> bool) -> Result<(), String> {
    match text.chars().find(|&c| !allowed(c)) {
        None => Ok(()),
        Some(' ') => Err("got a space in it".to_owned()),
        Some(c) if c.is_ascii_graphic() => Err(format!("got `{c}` in it")),
        Some(c) if c.is_alphanumeric() => Err(format!("got `{c}` (U+{:04X}, not ASCII) in it", u32::from(c))),
        Some(c) => Err(format!("got the character U+{:04X} in it", u32::from(c))),
    }
}

/// Holds `text` to `max` bytes.
fn at_most(text: &str, max: usize) -> Result<(), String> {
    if text.len() <= max { Ok(()) } else { Err(format!("got {} characters of at most {max}", text.len())) }
}

/// `Ok` or `wanted …, got …`.
fn wanted<T>(what: &str, result: Result<T, String>) -> Result<T, String> {
    result.map_err(|got| format!("wanted {what}, {got}"))
}

#[cfg(test)]
mod tests;
