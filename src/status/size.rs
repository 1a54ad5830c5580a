//! What had to go from a store, for people and programs.

use serde::Serialize;

use super::Time;
use crate::store::size::EvictedTotals;

/// What had to go, since the store began.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Evicted {
    pub images: u64,
    pub bytes: u64,
    /// The latest first.
    pub last: Vec<EvictedImage>,
}

#[derive(Debug, Clone, Serialize)]
pub struct EvictedImage {
    pub name: String,
    pub bytes: u64,
    pub at: Time,
    /// Seconds for which nobody had asked for it.
    pub idle: u64,
}

impl From<&EvictedTotals> for Evicted {
    fn from(totals: &EvictedTotals) -> Self {
        let last = totals.last.iter().map(|gone| EvictedImage {
            name: gone.name.clone(),
            bytes: gone.bytes,
            at: Time(gone.at),
            idle: gone.at.saturating_sub(gone.used),
        });
        Self { images: totals.images, bytes: totals.bytes, last: last.collect() }
    }
}
