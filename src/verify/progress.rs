//! What a person at a terminal sees while the checks run.

use std::io::Write;

/// Told about ten times a second, and once all is known.
pub trait Progress {
    /// `ended` of `total` checks need no more waiting; `waiting` says what one of the others is doing.
    fn show(&mut self, ended: usize, total: usize, waiting: &str);
    /// The run is over.
    fn clear(&mut self);
}

/// For a terminal at standard error, or for nobody.
#[must_use]
pub fn progress(terminal: bool) -> Box<dyn Progress> {
    if terminal { Box::new(Line) } else { Box::new(Silent) }
}

struct Silent;

impl Progress for Silent {
    fn show(&mut self, _: usize, _: usize, _: &str) {}
    fn clear(&mut self) {}
}

/// One line, written over again and again.
struct Line;

impl Progress for Line {
    fn show(&mut self, ended: usize, total: usize, waiting: &str) {
        write_over(&line(ended, total, waiting));
    }

    fn clear(&mut self) {
        write_over("");
    }
}

/// Fits a terminal of 80 columns: a line that wraps could not be written over.
fn line(ended: usize, total: usize, waiting: &str) -> String {
    let text = match waiting {
        "" => format!("proving {ended}/{total}"),
        waiting => format!("proving {ended}/{total}, waiting for {waiting}"),
    };
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(79).collect()
}

fn write_over(text: &str) {
    // Return to the first column, erase to the end of the line. A closed terminal is no reason to fail.
    let _ = write!(std::io::stderr().lock(), "\r\x1b[K{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_fits_and_holds_no_control_character() {
        assert_eq!(line(3, 27, ""), "proving 3/27");
        assert_eq!(
            line(3, 27, "ghcr.io: connection refused"),
            "proving 3/27, waiting for ghcr.io: connection refused"
        );
        let long = line(3, 27, &"x\n\x1b[2J".repeat(40));
        assert!(long.chars().count() == 79 && !long.chars().any(char::is_control), "got {long:?}");
    }
}
