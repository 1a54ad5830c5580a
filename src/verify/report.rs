//! What verification found: a value that prints as a table, serialises with a fixed schema and logs itself.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};

use super::direct::{Allowance, Cause};

/// How a check ended, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Ok,
    /// Not asked, because something else that is down stood before it.
    Skipped,
    /// Not as wanted; the profile lets it pass.
    Warned,
    Down,
}

impl State {
    /// As in JSON and in the journal.
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Skipped => "skipped",
            Self::Warned => "warned",
            Self::Down => "down",
        }
    }

    /// As in the table, where what is not well has to stand out without colour too.
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Skipped => "skip",
            Self::Warned => "WARN",
            Self::Down => "DOWN",
        }
    }

    fn color(self) -> &'static str {
        match self {
            Self::Ok => "\x1b[32m",
            Self::Skipped => "\x1b[2m",
            Self::Warned => "\x1b[33m",
            Self::Down => "\x1b[1;31m",
        }
    }
}

/// One check and what it found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    pub subject: String,
    /// `address`, `unit`, `endpoint`, `preflight`, `upstream`, `timer`, `cri`, `pull` or `caches`.
    pub check: &'static str,
    pub state: State,
    pub wanted: String,
    pub got: String,
    /// From the start of the run to the answer; to its end where there was none.
    pub took_ms: u64,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub detail: Option<Detail>,
}

/// What a program may want to know of an upstream's own answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Detail {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    #[serde(flatten)]
    pub allowance: Allowance,
}

impl Detail {
    /// Whether the upstream refuses what the profile says.
    pub(super) fn is_refusal(&self) -> bool {
        self.cause == Some(Cause::Credentials)
    }
}

impl Row {
    /// Answers come from programs and from the network: they are cut, and made one line.
    pub(super) fn new(
        subject: &str,
        check: &'static str,
        state: State,
        wanted: &str,
        got: &str,
        took: Duration,
    ) -> Self {
        Self {
            subject: subject.to_owned(),
            check,
            state,
            wanted: wanted.to_owned(),
            got: one_line(got),
            took_ms: millis(took),
            detail: None,
        }
    }
}

/// `ghcr.io: wanted 200 from http://10.0.20.10:5010/v2/, got connection refused`
impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.state {
            State::Ok if self.check == PULL => write!(f, "{}: {}", self.subject, self.got),
            State::Ok => write!(f, "{}: {}", self.subject, self.wanted),
            _ => write!(f, "{}: wanted {}, got {}", self.subject, self.wanted, self.got),
        }
    }
}

fn one_line(text: &str) -> String {
    const LONGEST: usize = 500;
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// How many checks ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub ok: usize,
    pub skipped: usize,
    pub warned: usize,
    pub down: usize,
}

/// One run's rows, in the order of the checks. Serialised it is the status file and `--output json`; a field
/// that goes or changes its meaning raises `version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    version: u32,
    #[serde(serialize_with = "rfc3339")]
    at: SystemTime,
    took_ms: u64,
    #[serde(flatten)]
    counts: Counts,
    rows: Vec<Row>,
}

fn rfc3339<S: Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_seconds(*at))
}

impl Report {
    pub(super) fn new(rows: Vec<Row>, took: Duration) -> Self {
        let mut counts = Counts::default();
        for row in &rows {
            match row.state {
                State::Ok => counts.ok += 1,
                State::Skipped => counts.skipped += 1,
                State::Warned => counts.warned += 1,
                State::Down => counts.down += 1,
            }
        }
        Self { version: 1, at: SystemTime::now(), took_ms: millis(took), counts, rows }
    }

    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// How many checks must make the run fail.
    #[must_use]
    pub fn down(&self) -> usize {
        self.counts.down
    }

    /// The table, in colour for a terminal; `Display` is the same without.
    #[must_use]
    pub fn table(&self, color: bool) -> impl fmt::Display {
        Table { report: self, color }
    }

    /// One event per row and one for all of them. The fields are `LARDER_SUBJECT` and so on in the journal.
    pub fn log(&self) {
        macro_rules! log_row {
            ($level:ident, $row:ident) => {
                tracing::$level!(
                    subject = $row.subject.as_str(),
                    check = $row.check,
                    state = $row.state.name(),
                    wanted = $row.wanted.as_str(),
                    got = $row.got.as_str(),
                    took_ms = $row.took_ms,
                    "{}",
                    $row
                )
            };
        }
        for row in &self.rows {
            match row.state {
                State::Ok => log_row!(debug, row),
                State::Skipped => log_row!(info, row),
                State::Warned => log_row!(warn, row),
                State::Down => log_row!(error, row),
            }
        }
        let Counts { ok, skipped, warned, down } = self.counts;
        tracing::info!(ok, skipped, warned, down, took_ms = self.took_ms, "{}", self.summary());
    }
}

impl Report {
    /// `27 checks in 60.0 s: 25 ok, 1 skipped, 1 down`; what there is none of is left out.
    fn summary(&self) -> String {
        let Counts { ok, skipped, warned, down } = self.counts;
        let parts = [(ok, "ok"), (skipped, "skipped"), (warned, "warned"), (down, "down")];
        let named: Vec<String> = parts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, name)| format!("{count} {name}"))
            .collect();
        let checks = if self.rows.len() == 1 { "check" } else { "checks" };
        let mark = if named.is_empty() { "" } else { ": " };
        format!("{} {checks} in {}{mark}{}", self.rows.len(), seconds(self.took_ms), named.join(", "))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Table { report: self, color: false }.fmt(f)
    }
}

/// A line per subject with a column per kind of check, then a line for everything that is not ok.
struct Table<'a> {
    report: &'a Report,
    color: bool,
}

const COLUMNS: [&str; 8] = ["address", "unit", "endpoint", "preflight", "upstream", "timer", "cri", PULL];
/// Its rows say who served what: they are shown when all is well, too.
const PULL: &str = "pull";

/// One subject's worst state per kind of check, and its slowest answer.
#[derive(Default)]
struct Line<'a> {
    states: BTreeMap<&'a str, State>,
    took_ms: u64,
}

impl Table<'_> {
    /// Subjects in the order in which they first appear.
    fn lines(&self) -> Vec<(&str, Line<'_>)> {
        let mut places: BTreeMap<&str, usize> = BTreeMap::new();
        let mut lines: Vec<(&str, Line<'_>)> = Vec::new();
        for row in &self.report.rows {
            let place = *places.entry(&row.subject).or_insert(lines.len());
            if place == lines.len() {
                lines.push((&row.subject, Line::default()));
            }
            if let Some((_, line)) = lines.get_mut(place) {
                let state = line.states.entry(row.check).or_insert(row.state);
                *state = row.state.max(*state);
                line.took_ms = line.took_ms.max(row.took_ms);
            }
        }
        lines
    }

    fn cell(&self, f: &mut fmt::Formatter<'_>, state: Option<State>, width: usize) -> fmt::Result {
        let text = state.map_or("", State::word);
        match state {
            Some(state) if self.color => {
                write!(
                    f,
                    "  {}{text}\x1b[0m{:pad$}",
                    state.color(),
                    "",
                    pad = width.saturating_sub(text.len())
                )
            }
            _ => write!(f, "  {text:<width$}"),
        }
    }
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.lines();
        let columns: Vec<&str> = COLUMNS
            .into_iter()
            .filter(|name| self.report.rows.iter().any(|row| row.check == *name))
            .collect();
        let widest = lines.iter().map(|(subject, _)| subject.chars().count()).max().unwrap_or(0);
        let width = |name: &str| name.len().max("DOWN".len());
        if !lines.is_empty() {
            write!(f, "{:widest$}", "")?;
            for name in &columns {
                write!(f, "  {:<width$}", name, width = width(name))?;
            }
            writeln!(f, "  {:>8}", "took")?;
        }
        for (subject, line) in &lines {
            write!(f, "{subject:<widest$}")?;
            for name in &columns {
                self.cell(f, line.states.get(name).copied(), width(name))?;
            }
            writeln!(f, "  {:>8}", seconds(line.took_ms))?;
        }
        let mut told =
            self.report.rows.iter().filter(|row| row.state != State::Ok || row.check == PULL).peekable();
        if told.peek().is_some() {
            writeln!(f)?;
        }
        for row in told {
            match self.color {
                true => writeln!(f, "{}{}\x1b[0m {row}", row.state.color(), row.state.word())?,
                false => writeln!(f, "{} {row}", row.state.word())?,
            }
        }
        if !lines.is_empty() {
            writeln!(f)?;
        }
        writeln!(f, "{}", self.report.summary())
    }
}

fn seconds(ms: u64) -> String {
    format!("{}.{:02} s", ms / 1000, ms % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let row = |subject: &str, check, state, got: &str, ms| {
            Row::new(subject, check, state, "what is right", got, Duration::from_millis(ms))
        };
        let rows = vec![
            row("network", "address", State::Ok, "10.0.20.10/24 on eth0", 3),
            row("docker.io", "unit", State::Ok, "active (running)", 40),
            row("docker.io", "endpoint", State::Ok, "200", 38),
            row("docker.io", "timer", State::Ok, "next Sun", 40),
            row("docker.io", "timer", State::Down, "inactive (dead)", 2050),
            row("registry.k8s.io", "unit", State::Ok, "active (running)", 40),
            row("registry.k8s.io", "endpoint", State::Down, "connection\nrefused", 60_004),
            row("registry.k8s.io", "upstream", State::Skipped, "not asked", 60_004),
            row("containerd", "cri", State::Warned, "error", 5),
        ];
        let mut report = Report::new(rows, Duration::from_millis(60_010));
        report.at = SystemTime::UNIX_EPOCH;
        report
    }

    #[test]
    fn table() {
        let text = report().to_string();
        let trimmed: Vec<&str> = text.lines().map(str::trim_end).collect();
        let wanted = "
                 address  unit  endpoint  upstream  timer  cri       took
network          ok                                                0.00 s
docker.io                 ok    ok                  DOWN           2.05 s
registry.k8s.io           ok    DOWN      skip                    60.00 s
containerd                                                 WARN    0.00 s

DOWN docker.io: wanted what is right, got inactive (dead)
DOWN registry.k8s.io: wanted what is right, got connection refused
skip registry.k8s.io: wanted what is right, got not asked
WARN containerd: wanted what is right, got error

9 checks in 60.01 s: 5 ok, 1 skipped, 1 warned, 2 down";
        assert_eq!(trimmed, wanted.lines().skip(1).collect::<Vec<_>>(), "got\n{text}");
    }

    #[test]
    fn styled_table_has_the_same_text() {
        let report = report();
        let mut text = report.table(true).to_string();
        assert!(text.contains("\x1b[1;31mDOWN\x1b[0m"), "wanted colour, got {text:?}");
        while let Some((before, rest)) = text.split_once("\x1b[") {
            let (_, after) = rest.split_once('m').expect("end of the sequence");
            text = format!("{before}{after}");
        }
        assert_eq!(text, report.to_string());
    }

    #[test]
    fn empty_report() {
        assert_eq!(Report::new(Vec::new(), Duration::ZERO).to_string(), "0 checks in 0.00 s\n");
    }

    #[test]
    fn json_schema_is_stable() {
        let mut report = report();
        report.rows.truncate(1);
        let wanted = serde_json::json!({
            "version": 1,
            "at": "1970-01-01T00:00:00Z",
            "took_ms": 60010,
            "ok": 5, "skipped": 1, "warned": 1, "down": 2,
            "rows": [{
                "subject": "network", "check": "address", "state": "ok",
                "wanted": "what is right", "got": "10.0.20.10/24 on eth0", "took_ms": 3,
            }],
        });
        assert_eq!(serde_json::to_value(&report).expect("json"), wanted);
    }
}
