//! Where events go: the journal, with their fields; standard error where there is no journal.
//!
//! What a person has to read is printed by [`crate::cli`] besides; such events carry the target [`TOLD`], and
//! standard error does not get them twice.

use std::io::{IsTerminal, stderr};
use std::os::fd::AsFd;

use nix::sys::stat::fstat;
use tracing::level_filters::LevelFilter;
use tracing::{Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// Target of events whose text is printed as well.
pub const TOLD: &str = "larder::told";

/// Sets up the journal, or standard error in its place.
pub fn init() {
    let registry = tracing_subscriber::registry();
    // No socket, or one that nobody listens on: a chroot, a container, an image build.
    let set = match tracing_journald::layer() {
        Ok(journal) => {
            let journal = journal
                .with_syslog_identifier("larder".to_owned())
                .with_field_prefix(Some("LARDER".to_owned()));
            // Of what the libraries do, only what goes wrong.
            let filter = filter_fn(|event| {
                let most = if event.target().starts_with("larder") { Level::DEBUG } else { Level::WARN };
                *event.level() <= most
            });
            let filter = filter.with_max_level_hint(LevelFilter::DEBUG);
            registry.with(journal.with_filter(filter)).try_init()
        }
        Err(_) => registry.with(on_stderr()).try_init(),
    };
    // Only a second call fails.
    drop(set);
}

fn on_stderr<S>() -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    tracing_subscriber::fmt::layer()
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .without_time()
        .with_target(false)
        .with_filter(filter_fn(|event| event.target() != TOLD && *event.level() <= Level::INFO))
}

/// Whether standard error is a stream to the journal already (systemd.exec(5), `$JOURNAL_STREAM`): what is
/// printed there arrives without us.
#[must_use]
pub fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stat) = fstat(stderr().as_fd()) else { return false };
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}
