//! docs/profile.md.

use std::collections::BTreeMap;

use super::keys::{Block, Key, Need, flow, line};

const HEAD: &str = "\
# The profile, key by key

Made from the JSON Schema that `larder schema` prints: `UPDATE=1 cargo test --test profile_reference` writes this page.

The layers are read in this order, and merged:

1. `/usr/lib/larder/profile.yaml`: what an image was built with
2. `/etc/larder/profile.yaml`
3. `/etc/larder/profile.d/*.yaml`, by name

Maps merge, everything else replaces, `null` takes away what a lower layer says. `--profile FILE` reads that file alone.
`larder config` prints what comes of it, with the file and line of each value; `larder check` says what is wrong with it.

What is refused says so with its file, line and column, all of it in one run. A secret in clear is refused in a file that
everybody on the machine can read.

## What values look like

| what is called | is |
| --- | --- |
";

/// The whole page.
pub fn page(blocks: &[Block], kinds: &BTreeMap<String, String>) -> String {
    let mut out = HEAD.to_owned();
    for (name, rest) in kinds {
        out += &format!("| {name} | {rest} |\n");
    }
    for block in blocks {
        let title = if block.path.is_empty() { "The top".to_owned() } else { format!("`{}`", block.path) };
        out += &format!(
            "\n## {title}\n\n{}{}\n\n",
            block.about,
            if block.about.ends_with('.') { "" } else { "." }
        );
        out += "| key | means | takes | without it | example |\n| --- | --- | --- | --- | --- |\n";
        for key in &block.keys {
            out += &row(blocks, key);
        }
    }
    out
}

fn row(blocks: &[Block], key: &Key) -> String {
    let without = match &key.need {
        Need::Required => "refused".to_owned(),
        Need::OneOf => "one of these".to_owned(),
        Need::Default(value) => format!("`{}`", flow(blocks, value, false)),
        Need::Otherwise(words) => words.clone(),
    };
    let example = format!("`{}`", line(blocks, key));
    let cells = [&format!("`{}`", key.name), key.about.trim_end_matches('.'), &*key.kind, &without, &example];
    format!("| {} |\n", cells.map(|cell| cell.replace('|', "\\|")).join(" | "))
}
