//! What the profile's `containerd` block names on the machine: secrets, certificates, the machine itself.

use anyhow::Result;

use super::{Facts, find_secret, name_secret};
use crate::node::{AbsolutePath, Containerd, Order, SecretSource, Trust};
use crate::root::Root;

/// machine-id(5).
const MACHINE_ID: &str = "etc/machine-id";

pub(super) fn read(root: &Root, client: &Containerd, facts: &mut Facts) -> Result<()> {
    if client.order == Order::Spread {
        facts.containerd.machine_id = machine_id(root)?;
    }
    for (host, mirrors) in &client.mirrors {
        for (index, mirror) in mirrors.iter().enumerate() {
            let path = format!("containerd.mirrors.{host}[{index}]");
            for (name, source) in &mirror.headers {
                secret(root, &format!("{path}.headers.{name}"), source, facts)?;
            }
            if let Some(Trust::File(file)) = &mirror.ca {
                pem(root, &format!("{path}.ca"), file, "CERTIFICATE-----", facts)?;
            }
            if let Some((certificate, key)) = &mirror.client {
                pem(root, &format!("{path}.client"), certificate, "CERTIFICATE-----", facts)?;
                pem(root, &format!("{path}.client"), key, "PRIVATE KEY-----", facts)?;
            }
        }
    }
    for (host, credentials) in &client.auth {
        secret(root, &format!("containerd.auth.{host}.password"), &credentials.password, facts)?;
    }
    Ok(())
}

fn secret(root: &Root, path: &str, source: &SecretSource, facts: &mut Facts) -> Result<()> {
    if matches!(source, SecretSource::Literal(_)) || facts.containerd.secret(source).is_some() {
        return Ok(());
    }
    match find_secret(root, source)? {
        // A line end would change the structure of the request that it goes into.
        Some(text) if text.is_empty() || text.chars().any(char::is_control) => facts.problems.push(format!(
            "{path}: {} is not one line of text: write the secret alone into it",
            name_secret(root, source)
        )),
        Some(text) => facts.containerd.secrets.push((source.clone(), text)),
        None => facts.problems.push(format!("{path}: {} is not there", name_secret(root, source))),
    }
    Ok(())
}

/// A file that is missing or holds something else fails each pull, without going on to the next endpoint.
fn pem(root: &Root, path: &str, file: &AbsolutePath, what: &str, facts: &mut Facts) -> Result<()> {
    let below = file.as_str().trim_start_matches('/');
    let problem = match root.read(below)? {
        None => "is not there".to_owned(),
        Some(bytes) if !String::from_utf8_lossy(&bytes).contains(what) => {
            format!("holds no `{what}`").replace("-----", "")
        }
        Some(_) => return Ok(()),
    };
    facts.problems.push(format!("{path}: {} {problem}: each pull would fail", root.show(below)));
    Ok(())
}

fn machine_id(root: &Root) -> Result<Option<String>> {
    let bytes = root.read(MACHINE_ID)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let id = text.trim();
    // An image has none yet, or says `uninitialized`.
    Ok((id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| id.to_owned()))
}
