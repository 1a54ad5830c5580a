//! The profile as it is written: one type per block, one field per key. What a value means, and whether it fits
//! the others, is decided in [`super::build`].

use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;

use super::choices::{EngineForm, InterfaceForm, MirrorForm, MirrorUrl, Secret, StorageForm};
use super::face::{AccessForm, MetricsForm};
use super::values::{Downloads, Keyed, RestartForm, ScheduleForm, Version};
use super::{
    AbsolutePath, CacheHost, Capability, DomainName, HeaderName, HelperName, MirrorHost, Mtu, Order, Port,
    RemoteUrl, Renderer, Repository, RouteTarget, Size, Trust, UpstreamHost, UpstreamPolicy, Username,
};
use crate::profile::decode::{At, List};
use crate::profile::record::record;

record! {
    /// What one machine of a registry-mirror fleet shall be.
    pub struct Profile {
        /// The version of this format.
        #[required = "version: 1"]
        version: Version,
        /// What the fleet pulls, and the port on which every cache serves it. The same block goes to every node.
        #[otherwise = "nothing is pulled through a cache"]
        #[example = "{ docker.io: { port: 5000 }, ghcr.io: { port: 5010 } }"]
        upstreams: At<Keyed<UpstreamHost, Upstream>>,
        /// This node's static address.
        #[otherwise = "the address stays as it is"]
        #[example = "{ addresses: [10.0.20.10/24], gateway: 10.0.20.1 }"]
        network: At<Network>,
        /// Present: this node runs one pull-through registry per upstream.
        #[otherwise = "this node is no cache"]
        #[example = "{}"]
        cache: At<Cache>,
        /// Present: this node's containerd pulls through these caches.
        #[otherwise = "containerd stays as it is"]
        #[example = "{}"]
        containerd: At<Containerd>,
        /// What has to be shown before a run counts as done.
        #[otherwise = "each key's own default"]
        #[example = "{ timeout: 60s, upstreams: require }"]
        verify: Verify,
    }
}

record! {
    /// One upstream registry.
    #[written = "{ port: 5000 }"]
    pub struct Upstream {
        /// The port on which every cache of the fleet serves this upstream.
        #[required = "port: 5000"]
        port: At<Port>,
        /// The upstream's own URL.
        #[otherwise = "`https://` and the name; `https://registry-1.docker.io` for `docker.io`"]
        remote: At<RemoteUrl>,
        /// Who the cache is at this upstream; needs `password`.
        #[otherwise = "nobody in particular"]
        username: At<Username>,
        /// Belongs to `username`: the text itself, or where it is.
        #[otherwise = "none"]
        password: At<Secret>,
        /// A docker credential helper, for passwords that expire: `docker-credential-<name>` on this node.
        #[otherwise = "none"]
        credential_helper: At<HelperName>,
        /// Trusted for this upstream only, besides the system's own: a PEM file, or the PEM text itself.
        #[otherwise = "the system's own authorities alone"]
        #[example = "/etc/ssl/private-ca.pem"]
        ca: At<Trust>,
        /// The repository, with the tag of a small image, that the verification asks for.
        #[otherwise = "one that is known of a well-known upstream; else the repository is not asked for"]
        #[example = "library/busybox:latest"]
        probe: At<Repository>,
        /// The most that this upstream's data may take on disk, 100MiB at least.
        #[otherwise = "what the others leave it of `cache.max_size`"]
        max_size: At<Size>,
        /// When unreferenced data is collected.
        #[otherwise = "`cache.gc`"]
        #[example = "\"Sun 03:00\""]
        gc: At<ScheduleForm>,
        /// When all its data is compared with its digests.
        #[otherwise = "`cache.scrub`"]
        #[example = "never"]
        scrub: At<ScheduleForm>,
        /// When the registry is restarted.
        #[otherwise = "`cache.restart`"]
        #[example = "never"]
        restart: RestartForm,
    }
}

record! {
    /// The static address.
    #[written = "{ addresses: [10.0.20.10/24] }"]
    pub struct Network {
        /// The interface, by its name or its MAC address; `auto` is the one with the default route, else the only Ethernet one.
        #[default = "auto"]
        #[example = "eth0"]
        interface: At<InterfaceForm>,
        /// Each with its prefix length.
        #[required = "addresses: [10.0.20.10/24]"]
        addresses: At<List<At<IpNetwork>>>,
        /// The router of the default route.
        #[otherwise = "no default route but one of `routes`"]
        gateway: At<IpAddr>,
        /// More routes.
        #[otherwise = "none"]
        #[example = "[{ to: 10.1.0.0/16, via: 10.0.20.2 }]"]
        routes: Vec<At<Route>>,
        /// DNS servers.
        #[otherwise = "none of its own"]
        #[example = "{ addresses: [10.0.20.1], search: [lab.internal] }"]
        nameservers: Nameservers,
        /// The largest packet of the link, in bytes.
        #[otherwise = "the link's own"]
        #[example = "1500"]
        mtu: At<Mtu>,
        /// Who configures the network; `auto` is who does on this machine.
        #[default = "auto"]
        #[example = "networkd"]
        renderer: At<Renderer>,
    }
}

record! {
    /// One route.
    #[written = "{ to: default, via: 10.0.20.1 }"]
    pub struct Route {
        /// `default`, or a network with its prefix length.
        #[required = "to: default"]
        to: At<RouteTarget>,
        /// The router.
        #[required = "via: 10.0.20.1"]
        via: At<IpAddr>,
    }
}

record! {
    /// DNS.
    #[written = "{ addresses: [10.0.20.1] }"]
    pub struct Nameservers {
        /// In the order in which they are asked.
        #[otherwise = "none"]
        #[example = "[10.0.20.1]"]
        addresses: Vec<At<IpAddr>>,
        /// Domains in which short names are looked up.
        #[otherwise = "none"]
        #[example = "[lab.internal]"]
        search: Vec<DomainName>,
    }
}

record! {
    /// This node as a cache.
    #[written = "{}"]
    pub struct Cache {
        /// The address that the registries listen on.
        #[otherwise = "the first IPv4 address of `network`, else every address"]
        #[example = "10.0.20.10"]
        listen: At<IpAddr>,
        /// The registry program; `auto` is the binary that is found, else an image that podman or docker has.
        #[default = "auto"]
        #[example = "{ container: podman, image: \"registry:3\" }"]
        engine: At<EngineForm>,
        /// Where the data is: a folder, or an object store.
        #[default = "/var/lib/larder"]
        #[example = "/srv/registry-cache"]
        storage: At<StorageForm>,
        /// The most that all upstreams together may take on disk, 100MiB at least: what was used longest ago goes in time.
        #[otherwise = "the disk, of which 5 % (16GiB at most) are kept free"]
        #[example = "200GiB"]
        max_size: At<Size>,
        /// When unreferenced data is collected.
        #[otherwise = "`weekly`; `never` in an object store"]
        #[example = "\"Sun 03:00\""]
        gc: At<ScheduleForm>,
        /// When all data is compared with its digests, and what is broken removed.
        #[otherwise = "`monthly`; `never` in an object store"]
        #[example = "weekly"]
        scrub: At<ScheduleForm>,
        /// When the registries are restarted: only those that have grown or are not well, where `always` does not say otherwise.
        #[default = "hourly"]
        #[example = "{ at: daily, always: true }"]
        restart: RestartForm,
        /// The most memory that each registry may take.
        #[otherwise = "no bound"]
        #[example = "{ high: 512MiB, max: 1GiB }"]
        memory: At<Memory>,
        /// Serve https with this certificate; clients then write `https://` before the cache's name.
        #[otherwise = "http"]
        #[example = "{ certificate: /etc/ssl/cache.pem, key: /etc/ssl/private/cache.key }"]
        tls: At<Tls>,
        /// What the node tells Prometheus: `larder status` as a file for node_exporter, and the registries' own.
        #[otherwise = "the file, where node_exporter's folder is found"]
        #[example = "{ textfile: /srv/textfile, registries: \"127.0.0.1:5001\" }"]
        metrics: At<MetricsForm>,
        /// `open`, or the networks that may ask the registries; this node itself always may.
        #[otherwise = "whoever reaches it, with a warning where the cache has credentials"]
        #[example = "[10.0.20.0/24, \"fd00::/8\"]"]
        access: At<AccessForm>,
    }
}

record! {
    /// Bounds on the memory of each registry.
    #[written = "{ high: 512MiB, max: 1GiB }"]
    pub struct Memory {
        /// Above this it is slowed down and has to give memory back; 64MiB at least.
        #[otherwise = "no such bound"]
        #[example = "512MiB"]
        high: At<Size>,
        /// Above this it is killed, and starts again; 64MiB at least.
        #[otherwise = "no such bound"]
        #[example = "1GiB"]
        max: At<Size>,
    }
}

record! {
    /// A certificate and its key.
    #[written = "{ certificate: /etc/ssl/cache.pem, key: /etc/ssl/private/cache.key }"]
    pub struct Tls {
        /// The certificate chain.
        #[required = "certificate: /etc/ssl/cache.pem"]
        certificate: AbsolutePath,
        /// The private key.
        #[required = "key: /etc/ssl/private/cache.key"]
        key: AbsolutePath,
    }
}

record! {
    /// What the node tells Prometheus.
    #[written = "127.0.0.1:5001"]
    pub struct MetricsMap {
        /// The folder of node_exporter's textfile collector.
        #[otherwise = "where its package has it, if that is there"]
        #[example = "/srv/textfile"]
        textfile: At<AbsolutePath>,
        /// Distribution's own metrics: this loopback address, and a port for each registry from there on.
        #[otherwise = "none"]
        registries: At<std::net::SocketAddr>,
    }
}

record! {
    /// This node's containerd as a client.
    #[written = "{ caches: [10.0.20.10] }"]
    pub struct Containerd {
        /// Tried in this order; `https://` before one that serves https.
        #[otherwise = "this node, when it is a cache"]
        #[example = "[10.0.20.10, \"https://cache2.lab.internal\"]"]
        caches: At<List<At<CacheHost>>>,
        /// How the caches are tried: as `listed`, or `spread`: each node in a fixed order of its own, another for each upstream.
        #[default = "listed"]
        order: At<Order>,
        /// Whether the upstream itself is asked last; `false`: never, even where that fails the pull.
        #[default = "true"]
        fallback: At<bool>,
        /// The folder of the hosts.toml files.
        #[default = "/etc/containerd/certs.d"]
        #[example = "/etc/containerd/certs.d"]
        certs_dir: At<AbsolutePath>,
        /// More endpoints for one registry host, after the caches; `_default` is for each that is not named.
        #[otherwise = "none"]
        #[example = "{ docker.io: [\"https://mirror.gcr.io\"] }"]
        mirrors: At<Keyed<MirrorHost, At<List<At<MirrorForm>>>>>,
        /// How many layers are downloaded at once: of an image before containerd 2.1, of all images since.
        #[otherwise = "containerd's own"]
        #[example = "6"]
        max_concurrent_downloads: Downloads,
        /// A pull that receives nothing for so long is cancelled as a whole (containerd 1.7 and later).
        #[otherwise = "containerd's own"]
        #[example = "5m"]
        image_pull_progress_timeout: At<Duration>,
        /// This node's own credentials for a registry host.
        #[otherwise = "none"]
        #[example = "{ registry.example.com: { username: ci, password: { file: /etc/larder/secrets/example } } }"]
        auth: Keyed<UpstreamHost, Login>,
    }
}

record! {
    /// One endpoint.
    pub struct Mirror {
        /// Where it is.
        #[required = "url: https://mirror.example.com"]
        url: At<MirrorUrl>,
        /// The path of the URL is the whole path, `/v2` included, as a Harbor project's.
        #[default = "false"]
        override_path: At<bool>,
        /// What it is asked for.
        #[default = "[pull, resolve]"]
        #[example = "[pull]"]
        capabilities: At<List<At<Capability>>>,
        /// Trusted for this endpoint besides the system's own: a PEM file, or the PEM text itself.
        #[otherwise = "the system's own authorities alone"]
        ca: At<Trust>,
        /// Certificate and key that containerd shows to it, each a PEM file.
        #[otherwise = "none"]
        #[example = "[/etc/ssl/client.pem, /etc/ssl/client.key]"]
        client: At<List<At<AbsolutePath>>>,
        /// Take any certificate.
        #[default = "false"]
        skip_verify: At<bool>,
        /// Sent with each request: the text itself, or where it is.
        #[otherwise = "none"]
        #[example = "{ X-Token: { env: TOKEN } }"]
        headers: Keyed<HeaderName, At<Secret>>,
        /// How long a connection may take, from 100ms to 30s (containerd 2.1 and later).
        #[otherwise = "containerd's own, 30 s"]
        #[example = "5s"]
        dial_timeout: At<Duration>,
    }
}

record! {
    /// Credentials.
    #[written = "{ username: ci, password: { file: /etc/larder/secrets/example } }"]
    pub struct Login {
        /// Who.
        #[required = "username: ci"]
        username: Username,
        /// The text itself, or where it is.
        #[required = "password: { file: /etc/larder/secrets/example }"]
        password: At<Secret>,
    }
}

record! {
    /// What has to be shown before a run counts as done.
    #[written = "{ timeout: 60s }"]
    pub struct Verify {
        /// For all checks together.
        #[default = "60s"]
        #[example = "2m"]
        timeout: At<Duration>,
        /// What an upstream that cannot be reached is: a warning, or with `require` a failure of the run.
        #[default = "warn"]
        upstreams: UpstreamPolicy,
    }
}
