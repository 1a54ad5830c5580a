//! `larder recover`: takes a machine back to where it was before a run that died.

use std::fmt;

use anyhow::Result;
use serde_json::json;

use super::run::lock;
use super::{Input, Output, code, machine, print, print_json, refused, tell_warning};
use crate::host::Host;
use crate::host::signals::{self, Phase};
use crate::journal::{Manifest, UNDO};
use crate::plan::STATE;
use crate::recover::{Undone, clear, undo};
use crate::root::Root;

/// A run that died is not undone, or not all of it.
#[derive(Debug)]
pub(super) struct NotUndone(Vec<String>);

impl fmt::Display for NotUndone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("undo the run that died; not put back:")?;
        self.0.iter().try_for_each(|line| write!(f, "\n  {line}"))?;
        f.write_str("\n  (the next `larder apply` or `larder recover` tries again)")
    }
}

impl std::error::Error for NotUndone {}

pub(super) fn recover_command(input: &Input) -> Result<u8> {
    let (root, host) = machine(input)?;
    if !nix::unistd::geteuid().is_root() {
        return Err(refused("recover writes root's files: run it as root").into());
    }
    // What it begins it ends.
    signals::hold();
    signals::enter(Phase::Changes);
    let undone = dead_run(&root, host.as_ref())?;
    if input.output == Output::Json {
        let value = match &undone {
            None => json!({ "version": 1, "recovered": false }),
            Some(Undone { put_back, left, links, stores, kept }) => json!({
                "version": 1, "recovered": left.is_empty(), "put_back": put_back, "left": left, "links": links,
                "kept": kept, "stays": stores,
            }),
        };
        print_json(&value)?;
        let incomplete = undone.is_some_and(|undone| !undone.left.is_empty());
        return Ok(if incomplete { code::NOT_ROLLED_BACK } else { code::CONVERGED });
    }
    match undone {
        None => print("nothing to recover: no run of larder died here\n"),
        Some(undone) => {
            let text = told(&undone);
            complete(undone)?;
            print(&format!("{text}\n"))
        }
    }
}

/// Undoes what a run has begun that died, and that no profile finishes; says so.
///
/// # Errors
/// [`NotUndone`].
pub(super) fn undo_dead_run(input: &Input) -> Result<()> {
    // Whoever may not change anything has not come here to.
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let (root, host) = machine(input)?;
    if let Some(undone) = dead_run(&root, host.as_ref())? {
        tell_warning(&told(&undone));
        complete(undone)?;
    }
    Ok(())
}

fn complete(undone: Undone) -> Result<()> {
    if undone.left.is_empty() { Ok(()) } else { Err(NotUndone(undone.left).into()) }
}

fn dead_run(root: &Root, host: &dyn Host) -> Result<Option<Undone>> {
    if !root.exists(STATE) || (Manifest::read(root)?.journal.is_none() && !root.exists(UNDO)) {
        return Ok(None);
    }
    let _lock = lock(root)?;
    // It may have been at work.
    let manifest = Manifest::read(root)?;
    if manifest.journal.is_some() {
        return Ok(Some(undo(root, host, &manifest, None)));
    }
    // One that died before its first change has left copies.
    clear(root, &manifest)?;
    Ok(None)
}

fn told(undone: &Undone) -> String {
    let mut text = "a run of larder died before its end; it is undone".to_owned();
    if undone.left.is_empty() {
        text.push_str(": everything is as it was before it");
    }
    match undone.put_back.len() {
        0 => {}
        1 => text.push_str(" (1 path put back)"),
        many => text.push_str(&format!(" ({many} paths put back)")),
    }
    undone.links.iter().for_each(|links| text.push_str(&format!("; {links}")));
    undone
        .stores
        .iter()
        .for_each(|store| text.push_str(&format!("\n  stays, with what it has cached: {store}")));
    undone.kept.iter().for_each(|kept| text.push_str(&format!("\n  written since: {kept}")));
    text
}
