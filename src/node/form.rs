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
        upstreams: At<Keyed<UpstreamHost, Upstream>>,
        /// This node's static address. Leave the block out to keep the address as it is.
        network: At<Network>,
        /// Present: this node runs one pull-through registry per upstream.
        cache: At<Cache>,
        /// Present: this node's containerd pulls through these caches.
        containerd: At<Containerd>,
        /// What has to be shown before a run counts as done.
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
        /// The upstream's own URL; https://<name> by default.
        remote: At<RemoteUrl>,
        /// For the cache's own pulls.
        username: At<Username>,
        /// For the cache's own pulls: the text itself, or where it is.
        password: At<Secret>,
        /// A docker credential helper, for passwords that expire: `docker-credential-<name>` on this node.
        credential_helper: At<HelperName>,
        /// Trusted for this upstream only, besides the system's own: a PEM file, or the PEM text itself.
        ca: At<Trust>,
        /// The repository that the verification asks for; known upstreams have a default.
        probe: At<Repository>,
        /// The most that this upstream's data may take on disk; by default what the others leave it of cache.max_size.
        max_size: At<Size>,
        /// When unreferenced data is collected; cache.gc by default.
        gc: At<ScheduleForm>,
        /// When all its data is compared with its digests; cache.scrub by default.
        scrub: At<ScheduleForm>,
        /// When the registry is restarted; cache.restart by default.
        restart: RestartForm,
    }
}

record! {
    /// The static address.
    #[written = "{ addresses: [10.0.20.10/24] }"]
    pub struct Network {
        /// The interface; by default the one with the default route, else the only physical one.
        interface: At<InterfaceForm>,
        /// Each with its prefix length.
        #[required = "addresses: [10.0.20.10/24]"]
        addresses: At<List<At<IpNetwork>>>,
        /// The default route.
        gateway: At<IpAddr>,
        /// More routes.
        routes: Vec<At<Route>>,
        /// DNS servers.
        nameservers: Nameservers,
        /// Bytes.
        mtu: At<Mtu>,
        /// What sets the address: what the machine has, by default.
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
        addresses: Vec<At<IpAddr>>,
        /// Domains in which short names are looked up.
        search: Vec<DomainName>,
    }
}

record! {
    /// This node as a cache.
    #[written = "{}"]
    pub struct Cache {
        /// The address that the registries listen on; by default the first static IPv4 address, else every one.
        listen: At<IpAddr>,
        /// The registry program; by default the binary that is found.
        engine: At<EngineForm>,
        /// Where the data is.
        storage: At<StorageForm>,
        /// The most that all upstreams together may take on disk: what was used longest ago goes in time.
        max_size: At<Size>,
        /// When unreferenced data is collected; weekly by default.
        gc: At<ScheduleForm>,
        /// When all data is compared with its digests, and what is broken removed; monthly by default.
        scrub: At<ScheduleForm>,
        /// When the registries are restarted; hourly by default, and only those that have grown or are not well.
        restart: RestartForm,
        /// The most memory that each registry may take.
        memory: At<Memory>,
        /// Serve https with this certificate; clients then write `https://` before the cache's name.
        tls: At<Tls>,
        /// What the node tells Prometheus: `larder status` as a file for node_exporter, and the registries' own.
        metrics: At<MetricsForm>,
        /// `open`, or the networks that may ask the registries; this node itself always may.
        access: At<AccessForm>,
    }
}

record! {
    /// Bounds on the memory of each registry.
    #[written = "{ high: 512MiB, max: 1GiB }"]
    pub struct Memory {
        /// Above this it is slowed down and has to give memory back.
        high: At<Size>,
        /// Above this it is killed, and starts again.
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
        /// The folder of node_exporter's textfile collector; by default where the package has it, if it is there.
        textfile: At<AbsolutePath>,
        /// Distribution's own metrics: this loopback address, and a port for each registry from there on.
        registries: At<std::net::SocketAddr>,
    }
}

record! {
    /// This node's containerd as a client.
    #[written = "{ caches: [10.0.20.10] }"]
    pub struct Containerd {
        /// Tried in this order; by default this node, when it is a cache.
        caches: At<List<At<CacheHost>>>,
        /// `spread` lets each node try them in a fixed order of its own, another for each upstream.
        order: At<Order>,
        /// `false`: the upstream itself is never asked, even where that fails the pull.
        fallback: At<bool>,
        /// The folder of the hosts.toml files.
        certs_dir: At<AbsolutePath>,
        /// More endpoints for one registry host, after the caches; `_default` is for each that is not named.
        mirrors: At<Keyed<MirrorHost, At<List<At<MirrorForm>>>>>,
        /// How many layers are downloaded at once: of an image before containerd 2.1, of all images since.
        max_concurrent_downloads: Downloads,
        /// A pull that receives nothing for so long is cancelled as a whole (containerd 1.7 and later).
        image_pull_progress_timeout: At<Duration>,
        /// This node's own credentials for a registry host.
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
        override_path: At<bool>,
        /// What it is asked for: `pull` and `resolve` by default.
        capabilities: At<List<At<Capability>>>,
        /// Trusted for this endpoint besides the system's own: a PEM file, or the PEM text itself.
        ca: At<Trust>,
        /// Certificate and key that containerd shows to it, each a PEM file.
        client: At<List<At<AbsolutePath>>>,
        /// Take any certificate.
        skip_verify: At<bool>,
        /// Sent with each request: the text itself, or where it is.
        headers: Keyed<HeaderName, At<Secret>>,
        /// How long a connection may take, from 100ms to 30s (containerd 2.1 and later).
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
        timeout: At<Duration>,
        /// `require`: an unreachable upstream fails the run.
        upstreams: UpstreamPolicy,
    }
}
