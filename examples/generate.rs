//! Writes what packages carry besides files of this tree: `cargo run --example generate DIRECTORY` makes larder.8 and the
//! completions of bash, zsh and fish from the command line itself.

#![allow(clippy::disallowed_methods, reason = "a tool of the build, not a part of larder")]

use std::io::{self, Write};
use std::path::Path;
use std::{env, fs};

use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;
use larder::cli::Cli;

/// The hand-written part; a line with a marker is replaced.
const PAGE: &str = include_str!("../packaging/man/larder.8");
const COMMANDS: &str = ".\\\" @commands@\n";
const STATUS: &str = ".\\\" @exit-status@\n";

fn main() -> Result<()> {
    let folder = env::args_os().nth(1).context("usage: generate DIRECTORY")?;
    let folder = Path::new(&folder);
    fs::create_dir_all(folder)?;
    let shown = shown(&Cli::command());
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut shown.clone(), "larder", folder)?;
    }
    let page = PAGE.replace(COMMANDS, &commands(&shown)?).replace(STATUS, &status(&shown));
    fs::write(folder.join("larder.8"), page)?;
    Ok(())
}

/// The command without its hidden parts: those are for units, and no shell should offer them.
fn shown(command: &Command) -> Command {
    // clap takes names that live as long as the program.
    let own = |text: &str| &*text.to_owned().leak();
    let mut shown = Command::new(own(command.get_name()));
    if let Some(version) = command.get_version() {
        shown = shown.version(own(version));
    }
    if let Some(about) = command.get_about() {
        shown = shown.about(about.clone());
    }
    if let Some(text) = command.get_after_help() {
        shown = shown.after_help(text.clone());
    }
    shown
        .args(command.get_arguments().filter(|argument| !argument.is_hide_set()).cloned())
        .subcommands(command.get_subcommands().filter(|one| !one.is_hide_set()).map(self::shown))
        .disable_help_subcommand(true)
}

/// One subsection for each command: what it does, and its options.
fn commands(shown: &Command) -> Result<String> {
    let mut whole = shown.clone();
    whole.build();
    let mut page = Vec::new();
    for command in whole.get_subcommands() {
        let mut command = command.clone().disable_help_flag(true);
        let usage = command.render_usage().to_string();
        let usage = usage.trim_start_matches("Usage: ");
        writeln!(page, ".SS {}", text(usage))?;
        writeln!(page, "{}.", text(&command.get_about().map(ToString::to_string).unwrap_or_default()))?;
        options(&command, &mut page)?;
        if let Some(more) = command.get_after_help() {
            writeln!(page, ".PP\nExit codes:")?;
            codes(&more.to_string(), &mut page)?;
        }
    }
    Ok(String::from_utf8(page)?)
}

fn options(command: &Command, page: &mut impl Write) -> io::Result<()> {
    let plain = Command::new("larder")
        .args(command.get_arguments().filter(|argument| argument.get_id() != "help").cloned());
    let mut options = Vec::new();
    Man::new(plain).render_options_section(&mut options)?;
    // Its heading is of a page, and this is a subsection of one; what precedes it is set up once.
    let options = String::from_utf8_lossy(&options);
    let body = options.split_once(".SH OPTIONS\n").map_or("", |(_, body)| body);
    // An empty line is a paragraph already.
    page.write_all(body.replace("\n\n.br\n", "\n.br\n").as_bytes())
}

/// The exit codes as `larder --help` tells them.
fn status(shown: &Command) -> String {
    let mut page = Vec::new();
    let _ = codes(&shown.get_after_help().map(ToString::to_string).unwrap_or_default(), &mut page);
    String::from_utf8_lossy(&page).into_owned()
}

/// "Exit codes:" and lines of a number and a text, or of more text.
fn codes(help: &str, page: &mut impl Write) -> io::Result<()> {
    for line in help.lines() {
        let line = line.trim();
        match line.split_once(' ') {
            Some((code, meaning)) if code.parse::<u8>().is_ok() => {
                writeln!(page, ".TP\n.B {code}\n{}", text(meaning.trim()))?;
            }
            _ if line == "Exit codes:" => {}
            _ => writeln!(page, "{}", text(line))?,
        }
    }
    Ok(())
}

/// Text that no formatter takes for anything else (groff(7), "Escapes").
fn text(plain: &str) -> String {
    let escaped = plain.replace('\\', "\\e").replace('-', "\\-");
    match escaped.chars().next() {
        Some('.' | '\'') => format!("\\&{escaped}"),
        _ => escaped,
    }
}
