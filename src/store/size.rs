//! `size.json`: what the last scan of a store saw, and what has been evicted from it.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::layout::Layout;
use super::own_access;
use crate::root::Root;

const VERSION: u32 = 1;
/// So many of the images that went last are remembered.
const LAST: usize = 20;

/// What is known of one store. Bytes are those on disk, times are seconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeFile {
    pub(super) version: u32,
    /// When this was seen.
    pub at: u64,
    pub bytes: u64,
    pub blobs: usize,
    pub images: usize,
    /// When the image that was used longest ago was.
    pub oldest_use: Option<u64>,
    /// Of these bytes, what may be there by its share when all want more; absent without a budget.
    pub share: Option<u64>,
    /// The file system that it is on, and what was in use there then.
    pub device: u64,
    pub used_there: u64,
    pub evicted: EvictedTotals,
}

/// All that went since the store began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvictedTotals {
    pub bytes: u64,
    pub images: u64,
    /// The latest first.
    pub last: Vec<Gone>,
}

/// An image that went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gone {
    pub name: String,
    pub bytes: u64,
    /// When it was last used.
    pub used: u64,
    pub at: u64,
}

impl SizeFile {
    /// One that cannot be read is as good as none.
    #[must_use]
    pub fn read(root: &Root, layout: &Layout) -> Option<Self> {
        let bytes = root.read(&layout.size()).ok().flatten()?;
        serde_json::from_slice::<Self>(&bytes).ok().filter(|file| file.version == VERSION)
    }

    /// # Errors
    /// On I/O errors, a full disk among them.
    pub fn write(&self, root: &Root, layout: &Layout) -> Result<()> {
        let file = Self { version: VERSION, ..self.clone() };
        let bytes = serde_json::to_vec(&file).with_context(|| format!("render {}", layout.size()))?;
        root.write(&layout.size(), &bytes, own_access(0o640))
    }
}

impl EvictedTotals {
    /// Adds what went now, the latest last; `bytes` is all of it, with what was no image's.
    pub fn add(&mut self, bytes: u64, gone: impl DoubleEndedIterator<Item = Gone>) {
        self.bytes = self.bytes.saturating_add(bytes);
        let gone: Vec<Gone> = gone.rev().collect();
        self.images = self.images.saturating_add(gone.len() as u64);
        self.last.splice(0..0, gone.into_iter().take(LAST));
        self.last.truncate(LAST);
    }
}

/// As a person reads it: three digits.
#[must_use]
pub fn shown(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = bytes as f64;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while value >= 1000.0
        && let Some(next) = units.next()
    {
        value /= 1024.0;
        unit = Some(next);
    }
    let unit = unit.copied().unwrap_or_default();
    if value < 10.0 && unit != "B" { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_with_three_digits_at_most() {
        let cases = [0, 999, 1000, 1536, 900 << 20, 2 << 30, u64::MAX].map(shown);
        assert_eq!(cases, ["0 B", "999 B", "1.0 KiB", "1.5 KiB", "900 MiB", "2.0 GiB", "16777216 TiB"]);
    }

    #[test]
    fn the_last_twenty_are_remembered_and_all_are_counted() {
        let gone = |n: u64| Gone { name: format!("app:{n}"), bytes: 1, used: n, at: n };
        let mut totals = EvictedTotals::default();
        totals.add(15, (0..15).map(gone));
        totals.add(15, (15..30).map(gone));
        assert_eq!((totals.bytes, totals.images, totals.last.len()), (30, 30, 20));
        let names: Vec<&str> = totals.last.iter().map(|gone| gone.name.as_str()).collect();
        assert_eq!((names.first(), names.last()), (Some(&"app:29"), Some(&"app:10")));
    }
}
