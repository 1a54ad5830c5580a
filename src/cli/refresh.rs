//! `larder refresh`: one image is asked for again.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::scrub::{cached, caches, open};
use super::{Output, code, print, print_json, refused};
use crate::store;
use crate::store::refresh::{Dropped, Image, Reference, refresh};

/// Collection may hold the store for long.
const LOCK_LIMIT: Duration = Duration::from_secs(300);
const LOCK_POLL: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
pub(super) struct RefreshInput {
    /// As for docker pull: busybox, docker.io/library/busybox:1, ghcr.io/x/y@sha256:…
    image: String,
    /// Another machine's files
    #[arg(long, hide = true, value_name = "DIR")]
    root: Option<std::path::PathBuf>,
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

pub(super) fn refresh_command(input: &RefreshInput) -> Result<u8> {
    let image = Image::parse(&input.image).map_err(refused)?;
    let root = open(input.root.as_deref())?;
    let caches = caches(&root)?;
    let layout = cached(&caches, &image.host)?.layout()?;
    let deadline = Instant::now() + LOCK_LIMIT;
    let _lock = store::lock(&root, &layout, || {
        std::thread::sleep(LOCK_POLL);
        Instant::now() < deadline
    })?;
    let dropped = refresh(&root, &layout, &image)?;
    match input.output {
        Output::Text => print(&text(&image, &dropped)),
        Output::Json => print_json(&serde_json::json!({
            "version": 1,
            "image": image.to_string(),
            "tags": dropped.tags,
            "manifest": dropped.manifest.map(|digest| digest.to_string()),
            "manifest_kept_for": dropped.shared_with,
        })),
    }?;
    Ok(code::CONVERGED)
}

fn text(image: &Image, dropped: &Dropped) -> String {
    let mut lines = Vec::new();
    for tag in &dropped.tags {
        lines.push(format!("dropped {}/{}:{tag}", image.host, image.repository));
    }
    if let Some(digest) = dropped.manifest {
        lines.push(format!("dropped {}/{}@{digest}", image.host, image.repository));
    }
    if let Some(tag) = &dropped.shared_with {
        let what = if matches!(image.of, Reference::Tag(_)) { "its manifest" } else { "the manifest" };
        lines.push(format!("kept {what}: the tag {tag} stands for it too"));
    }
    if dropped.tags.is_empty() && dropped.manifest.is_none() {
        lines.push(format!("{image} is not cached"));
    }
    format!("{}; the next pull asks {}\n", lines.join("\n"), image.host)
}
