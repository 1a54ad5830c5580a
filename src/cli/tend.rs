//! `larder tend`: one round, or some.

use std::path::Path;

use anyhow::Result;

use super::code;
use super::scrub::open;
use crate::store::tend::{Round, Tender};

pub(super) fn tend_command(rounds: u32, root: Option<&Path>) -> Result<u8> {
    let root = open(root)?;
    let mut tender = Tender::default();
    let mut told = String::new();
    for round in 0..rounds {
        let pause = match tender.round(&root) {
            Ok(Round::Idle) => break,
            Ok(Round::Done(pause)) => pause,
            Err(error) if rounds == 1 => return Err(error),
            Err(error) => {
                // Every second the same is no news.
                let error = format!("{error:#}");
                if error != told {
                    tracing::warn!("{error}");
                }
                told = error;
                crate::store::tend::PAUSE
            }
        };
        if round + 1 < rounds {
            std::thread::sleep(pause);
        }
    }
    Ok(code::CONVERGED)
}
