//! larder-profile(5), in roff's man macros.

use std::collections::BTreeMap;

use super::keys::{self, Block, Key, Need, flow};

const HEAD: &str = "\
.TH LARDER-PROFILE 5 \"\" \"larder\" \"File formats\"
.SH NAME
larder-profile \\- what one machine of a registry\\-mirror fleet shall be
.SH SYNOPSIS
.nf
/usr/lib/larder/profile.yaml
/etc/larder/profile.yaml
/etc/larder/profile.d/*.yaml
.fi
.SH DESCRIPTION
.BR larder (8)
reads these files in this order, the last ones by name, and merges them:
maps merge, everything else replaces,
.B null
takes away what a lower file says.
.B larder config
prints what comes of it, with the file and line of each value;
.B larder check
says what is wrong with it.
.PP
A secret in clear is refused in a file that everybody on the machine can read.
";

const TAIL: &str = "\
.SH EXAMPLE
.nf
version: 1
upstreams:
  docker.io: { port: 5000 }
  ghcr.io:   { port: 5010 }
cache: {}
containerd: {}
.fi
.SH SEE ALSO
.BR larder (8),
.BR systemd.time (7)
";

/// The whole page.
pub fn page(blocks: &[Block], kinds: &BTreeMap<String, String>) -> String {
    let mut out = HEAD.to_owned() + ".SH VALUES\n";
    for (name, rest) in kinds {
        out += &format!(".TP\n.B {}\n{}\n", escape(name), line(rest));
    }
    for block in blocks {
        let title = if block.path.is_empty() { "KEYS AT THE TOP" } else { &block.path };
        out += &format!(".SH \"{}\"\n{}\n", escape(title), line(&block.about));
        for key in &block.keys {
            out += &entry(blocks, key);
        }
    }
    out + TAIL
}

fn entry(blocks: &[Block], key: &Key) -> String {
    let need = match &key.need {
        Need::Required => "It has to be there.".to_owned(),
        Need::OneOf => "Exactly one of these has to be there.".to_owned(),
        Need::Default(value) => format!("Default: {}.", flow(blocks, value, false)),
        Need::Otherwise(words) => format!("By default: {words}."),
    };
    let example = keys::line(blocks, key);
    format!(
        ".TP\n.B {}\n{}\n{}\n{}\n.br\nExample:\n.B \"{}\"\n",
        escape(&key.name),
        line(&key.about),
        line(&format!("Takes {}.", key.kind)),
        line(&need),
        escape(&example).replace('"', "\\(dq"),
    )
}

/// Text of its own lines: Markdown's backticks as quotes, and no request by accident.
fn line(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in escape(&text.replace('`', "\"")).split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + word.len() < 78 => *line += &format!(" {word}"),
            _ => lines.push(word.to_owned()),
        }
    }
    let guarded = lines.iter().map(|line| match line.starts_with(['.', '\'']) {
        true => format!("\\&{line}"),
        false => line.clone(),
    });
    guarded.collect::<Vec<_>>().join("\n")
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq")
}
