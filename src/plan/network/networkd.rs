//! systemd-networkd: one file, which is the first that matches.

use anyhow::Result;

use super::super::{Content, Plan};
use super::{Request, file_name, shadowed};
use crate::facts::Backend;
use crate::template::network::Link;
use crate::template::render;

pub(super) fn plan(request: &Request, plan: &mut Plan, refused: &mut Vec<String>) -> Result<()> {
    let ours = file_name(request.interface);
    let first = request.state.files.iter().find(|file| {
        file.path.rsplit('/').next().is_some_and(|name| name < ours.as_str())
            && takes(&file.text, request.interface, request.state.mac.as_deref())
    });
    if let Some(file) = first {
        refused.push(shadowed(&format!("/{}", file.path)));
        return Ok(());
    }
    let text = render(
        "the network file",
        &Link {
            interface: request.interface,
            mtu: request.mtu(),
            addresses: request.addresses(),
            nameservers: request.nameservers(),
            search: request.search().join(" "),
            routes: request.routes(),
        },
    )?;
    // systemd-networkd runs as its own user and silently skips a file that it cannot read.
    plan.file(request.path(Backend::Networkd), text, 0o644, Content::Ours);
    Ok(())
}

/// Whether a file's `[Match]` fits the interface. Other conditions than its name and address are not looked at
/// here: on a running machine, networkd itself says what it took.
fn takes(text: &str, interface: &str, mac: Option<&str>) -> bool {
    let mut section = "";
    let mut fits = None;
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        } else if section == "[Match]"
            && let Some((key, value)) = line.split_once('=')
        {
            let one = match key.trim() {
                "Name" => value.split_whitespace().any(|pattern| super::fits(pattern, interface)),
                "MACAddress" | "PermanentMACAddress" => {
                    mac.is_some_and(|mac| value.split_whitespace().any(|one| one.eq_ignore_ascii_case(mac)))
                }
                key if key.starts_with('#') => continue,
                _ => false,
            };
            fits = Some(fits.unwrap_or(true) && one);
        }
    }
    fits.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::takes;

    #[test]
    fn a_file_fits_by_name_or_address() {
        let mac = Some("52:54:00:12:34:56");
        for (text, wanted) in [
            ("[Match]\nName=eth0\n", true),
            ("[Match]\nName=en* eth*\n[Network]\nDHCP=yes\n", true),
            ("[Match]\nName=ens3\n", false),
            ("[Match]\nMACAddress=52:54:00:12:34:56\nName=eth0", true),
            ("[Match]\nMACAddress=52:54:00:12:34:57\nName=eth0", false),
            ("[Match]\nName=eth0\nVirtualization=vmware\n", false),
            ("[Network]\nName=eth0\n", false),
        ] {
            assert_eq!(takes(text, "eth0", mac), wanted, "{text}");
        }
    }
}
