//! How an engine is started: a binary, or an image by what runs it. To the unit both are one foreground process
//! that listens itself, writes its access log on standard output, and drains on SIGTERM.

#![expect(clippy::disallowed_methods, reason = "this process becomes another program")]

use std::collections::BTreeSet;
use std::process::Command;

use super::run::Role;
use crate::facts::{Container, Registry};
use crate::node::{ContainerRuntime, UpstreamHost};

/// Variables that the registry gets, whatever runs it: `REGISTRY_PROXY_PASSWORD` among them, so by name only.
const PASSED_ON: [&str; 13] = [
    "REGISTRY_",
    "GOMEMLIMIT",
    "OTEL_",
    "SSL_CERT_",
    "AWS_",
    "AZURE_",
    "GOOGLE_",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];
/// Where the authorities are that the machine trusts; the image has its own (Go's crypto/x509, root_linux.go).
const AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
];

/// The first of them that a registry reads.
const GO_LOOKS_AT: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What one run of an engine is about.
pub(super) struct Run<'a> {
    pub(super) host: &'a UpstreamHost,
    /// Absolute.
    pub(super) config: &'a str,
    /// Absolute; `None`: the data is in an object store.
    pub(super) store: Option<&'a str>,
    /// Who it runs as.
    pub(super) owner: (u32, u32),
    /// The names of variables that it gets beside those that are set here.
    pub(super) variables: &'a [String],
}

/// The registry, or who stands in for it.
pub(super) fn serve(registry: &Registry, run: &Run, role: Role) -> Command {
    let environment: &[(&str, &str)] = match role {
        Role::Cache => &[],
        // Without a remote it is a plain registry; the configuration lets nobody write to it.
        Role::StandIn => &[("REGISTRY_PROXY_REMOTEURL", ""), ("REGISTRY_HTTP_DRAINTIMEOUT", "60s")],
    };
    command(registry, run, "larder", "serve", environment)
}

/// The engine's own collector.
pub(super) fn collect(registry: &Registry, run: &Run) -> Command {
    command(registry, run, "larder-gc", "garbage-collect", &[])
}

fn command(
    registry: &Registry,
    run: &Run,
    prefix: &str,
    verb: &str,
    environment: &[(&str, &str)],
) -> Command {
    let mut command = Command::new(&registry.program);
    command.envs(environment.iter().copied());
    if let Some(container) = &registry.container {
        let mut names: BTreeSet<String> = std::env::vars_os()
            .filter_map(|(name, _)| name.into_string().ok())
            .filter(|name| PASSED_ON.iter().any(|start| name.starts_with(start)))
            .collect();
        names.extend(run.variables.iter().cloned());
        names.extend(environment.iter().map(|(name, _)| (*name).to_owned()));
        // What the machine trusts, where Go looks first; and for this upstream alone, what its unit names.
        let system = AUTHORITIES.into_iter().find(|path| std::path::Path::new(path).is_file());
        let mut trusted: Vec<(String, &str)> =
            system.map(|path| (path.to_owned(), GO_LOOKS_AT)).into_iter().collect();
        let own = std::env::var("SSL_CERT_FILE").ok().filter(|path| !path.is_empty());
        trusted.extend(own.as_deref().map(|path| (path.to_owned(), path)));
        command.args(arguments(container, run, prefix, &names, &trusted));
    }
    command.args([verb, run.config]);
    command
}

/// A container's name; a port's colon has no place in one, and hosts have no underscores.
pub(super) fn container_name(prefix: &str, host: &UpstreamHost) -> String {
    format!("{prefix}-{}", host.as_str().replace(':', "_"))
}

/// Everything between the runtime's name and the registry's own arguments.
fn arguments(
    container: &Container,
    run: &Run,
    prefix: &str,
    environment: &BTreeSet<String>,
    trusted: &[(String, &str)],
) -> Vec<String> {
    let user = format!("{}:{}", run.owner.0, run.owner.1);
    let name = container_name(prefix, run.host);
    let mut arguments: Vec<String> = [
        "run",
        "--rm",
        "--pull",
        "never",
        "--network",
        "host",
        "--name",
        &name,
        "--user",
        &user,
        // The container is the sandbox that the unit is to a binary.
        "--cap-drop",
        "all",
        "--security-opt",
        "no-new-privileges",
        "--read-only",
        "--tmpfs",
        "/tmp",
        "--entrypoint",
        "registry",
    ]
    .map(str::to_owned)
    .into();
    let own: &[&str] = match container.runtime {
        // All of it stays in the unit's own control group: its memory ceiling, its end, its account. Its standard
        // output is the unit's.
        ContainerRuntime::Podman => &["--cgroups", "disabled", "--log-driver", "passthrough"],
        // The client prints what the container writes; docker's own copy of that would grow for ever.
        ContainerRuntime::Docker => &["--log-driver", "none"],
    };
    arguments.extend(own.iter().map(|word| (*word).to_owned()));
    let mut mount = |from: &str, to: &str, access: &str| {
        arguments.extend(["--mount".to_owned(), format!("type=bind,source={from},target={to}{access}")]);
    };
    mount(run.config, run.config, ",readonly");
    if let Some(store) = run.store {
        mount(store, store, "");
    }
    trusted.iter().for_each(|(from, to)| mount(from, to, ",readonly"));
    arguments.extend(environment.iter().flat_map(|name| ["--env".to_owned(), name.clone()]));
    arguments.push(container.image.clone());
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(runtime: ContainerRuntime) -> String {
        let container = Container { runtime, image: "registry:3".to_owned(), archive: None, is_there: true };
        let host = UpstreamHost::parse("registry.example.com:5443").unwrap();
        let run = Run { host: &host, config: "/c.yml", store: Some("/s"), owner: (990, 991), variables: &[] };
        let names = BTreeSet::from(["REGISTRY_PROXY_PASSWORD".to_owned()]);
        arguments(&container, &run, "larder", &names, &[]).join(" ")
    }

    #[test]
    fn a_container_is_named_after_its_upstream_and_gets_secrets_by_name_only() {
        for runtime in [ContainerRuntime::Podman, ContainerRuntime::Docker] {
            let arguments = of(runtime);
            assert!(
                arguments.contains("--name larder-registry.example.com_5443 --user 990:991"),
                "{arguments}"
            );
            assert!(arguments.ends_with("--env REGISTRY_PROXY_PASSWORD registry:3"), "{arguments}");
            assert!(arguments.contains("--pull never"), "{arguments}");
            assert!(arguments.contains("type=bind,source=/s,target=/s "), "{arguments}");
        }
    }

    #[test]
    fn only_podman_stays_in_the_units_own_control_group() {
        assert!(of(ContainerRuntime::Podman).contains("--cgroups disabled --log-driver passthrough"));
        assert!(!of(ContainerRuntime::Docker).contains("cgroups"));
    }
}
