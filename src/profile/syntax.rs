//! What is usually behind a YAML syntax error.

use super::document::boundary;
use super::problem::Problem;
use super::tree::Place;

/// The parser's message with the way out, where the line shows one.
pub(super) fn explain(message: &str, text: &str, place: Place) -> Problem {
    let problem = Problem::error(place, format!("YAML: {message}"));
    let at = boundary(text, place.start as usize);
    let (before, after) = text.split_at(at);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let indent = before.get(line_start..).unwrap_or_default();
    let line_end = after.find('\n').map_or(text.len(), |newline| at + newline);
    let line = text.get(line_start..line_end).unwrap_or_default();
    if line.starts_with('\t') || (indent.trim().is_empty() && line.trim_start_matches(' ').starts_with('\t'))
    {
        return problem.help("indent with spaces, not with tabs");
    }
    if after.starts_with(['%', '@', '`']) {
        return problem.help("put quotes around a text that starts with this character");
    }
    if message.contains("flow mapping") || message.contains("flow sequence") || message.contains("unclosed") {
        return problem.help("is a `{` or a `[` before this not closed, or a comma missing?");
    }
    if line.contains("::") {
        return problem.help("put quotes around an IPv6 address");
    }
    if line.matches(": ").count() > 1 && !line.contains(['{', '"', '\'']) {
        return problem.help("put quotes around a text with `: ` in it");
    }
    problem
}
