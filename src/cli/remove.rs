//! `larder remove`: takes all of ours away.

use anyhow::Result;
use serde_json::json;

use super::run::lock;
use super::{Input, Output, code, machine, print, print_json, refused, tell_warning};
use crate::host::Host;
use crate::host::signals::{self, Phase};
use crate::journal::Manifest;
use crate::plan::STATE;
use crate::recover;
use crate::remove::{Removal, Removed, is_here};
use crate::root::Root;

const NOTHING: &str = "nothing of larder's is here\n";

pub(super) fn remove_command(input: &Input, purge: bool, dry_run: bool) -> Result<u8> {
    let (root, host) = machine(input)?;
    let host = host.as_ref();
    if dry_run {
        return show(input.output, &root, host, purge);
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(refused("remove writes root's files: run it as root").into());
    }
    // Touches nothing, the lock's folder among it.
    if !is_here(&root) {
        return nothing(input.output);
    }
    signals::hold();
    let _lock = match lock(&root) {
        // Another one was faster.
        Err(_) if !is_here(&root) => return nothing(input.output),
        locked => locked?,
    };
    let Some(removal) = Removal::find(&root, host, purge)? else {
        // Of one that died when it was through.
        root.sweep(STATE)?;
        recover::clear_rest(&root, &Manifest::read(&root)?)?;
        return nothing(input.output);
    };
    if let Some(session) = host.session()
        && removal.interfaces().any(|interface| host.carries(&interface, session.ours))
    {
        tell_warning(&format!(
            "this ssh session came to {}, on an interface whose address larder has set: it may hang. This run goes on \
             without it",
            session.ours
        ));
        signals::outlive_session();
    }
    signals::enter(Phase::Changes);
    let removed = removal.remove(&root, host)?;
    for warning in &removed.applied.warnings {
        tell_warning(warning);
    }
    tell(input.output, &removed)
}

fn nothing(output: Output) -> Result<u8> {
    match output {
        Output::Text => print(NOTHING),
        Output::Json => tell(output, &Removed::default()),
    }
}

fn show(output: Output, root: &Root, host: &dyn Host, purge: bool) -> Result<u8> {
    let Some(removal) = Removal::find(root, host, purge)? else { return nothing(output) };
    let diff = removal.diff(root)?;
    match output {
        Output::Text => {
            let beside: String = removal.leavings().iter().map(|path| format!("remove {path}\n")).collect();
            print(&format!("{beside}{diff}"))?;
        }
        Output::Json => {
            let changes: Vec<_> = diff.changes.iter().map(crate::diff::Change::row).collect();
            print_json(&json!({
                "version": 1, "changes": changes, "summary": diff.summary(), "beside": removal.leavings(),
            }))?;
        }
    }
    Ok(code::SOMETHING_TO_DO)
}

fn tell(output: Output, removed: &Removed) -> Result<u8> {
    let Removed { applied, given_back, removed, stays, left_alone, aside } = removed;
    if output == Output::Json {
        return print_json(&json!({
            "version": 1,
            "removed": removed,
            "given_back": given_back,
            "stays": stays,
            "left_alone": left_alone,
            "kept": aside,
            "warnings": applied.warnings,
        }));
    }
    let mut text = format!("{} removed, {} given back\n", removed.len(), given_back.len());
    for path in stays {
        text.push_str(&format!("stays: {path} (`larder remove --purge` deletes it)\n"));
    }
    for path in left_alone {
        text.push_str(&format!(
            "left: {path}: others have changed it since larder did; what it was before is kept\n"
        ));
    }
    for path in aside {
        text.push_str(&format!("kept aside: {path}\n"));
    }
    print(&text)
}
