//! Columns, and figures in few characters.

use std::fmt::Write;

use crate::status::Time;

/// A row of cells for each thing; the first column gives way where the width is not enough.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

const GAP: &str = "  ";
/// A first column is not cut below.
const NARROWEST: usize = 12;

impl Table {
    pub(super) fn new(heads: &[&str]) -> Self {
        Self { rows: vec![heads.iter().map(|head| (*head).to_owned()).collect()] }
    }

    pub(super) fn row(&mut self, cells: &[String]) {
        self.rows.push(cells.to_vec());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.len() < 2
    }

    /// Nothing without rows.
    pub(super) fn text(&self, width: usize) -> String {
        let mut out = String::new();
        if self.is_empty() {
            return out;
        }
        let columns = self.rows.first().map_or(0, Vec::len);
        let widest = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let mut widths: Vec<usize> = (0..columns).map(widest).collect();
        let whole: usize = widths.iter().sum::<usize>() + GAP.len() * columns.saturating_sub(1);
        if let Some(first) = widths.first_mut() {
            *first = first.saturating_sub(whole.saturating_sub(width)).max(NARROWEST.min(*first));
        }
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                // Writing to a String does not fail.
                let _ = write!(line, "{:<width$}{GAP}", shorten(cell, *width));
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// The middle goes: a name's start and end tell most.
fn shorten(text: &str, width: usize) -> String {
    let count = text.chars().count();
    if count <= width {
        return text.to_owned();
    }
    let head = width.saturating_sub(1) / 2;
    let tail = width.saturating_sub(1) - head;
    text.chars().take(head).chain(std::iter::once('…')).chain(text.chars().skip(count - tail)).collect()
}

/// `12.3GiB`: three figures or four.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    let mut shift = 0_u32;
    while bytes >> shift >= 1024 && unit < UNITS.len() - 1 {
        unit += 1;
        shift += 10;
    }
    let whole = bytes >> shift;
    let name = UNITS.get(unit).copied().unwrap_or_default();
    if unit == 0 || whole >= 100 {
        return format!("{whole}{name}");
    }
    let tenth = ((bytes - (whole << shift)) * 10) >> shift;
    format!("{whole}.{tenth}{name}")
}

pub(super) fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.0}%", share * 100.0))
}

/// `42s`, `5m`, `3h`, `6d`.
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..=99 => format!("{seconds}s"),
        100..=5_999 => format!("{}m", seconds / 60),
        6_000..=172_799 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

pub(super) fn since(now: Time, at: Time) -> String {
    format!("{} ago ({at})", span(now.0.saturating_sub(at.0)))
}

pub(super) fn until(now: Time, at: Time) -> String {
    format!("in {} ({at})", span(at.0.saturating_sub(now.0)))
}
