//! The documents of the managers of the network. Interfaces, addresses and domains are of types that hold none
//! of the characters with which a value could change such a file's structure.

use askama::Template;

/// A static address for systemd-networkd (systemd.network(5)).
#[derive(Template)]
#[template(path = "link.network")]
pub struct Link<'a> {
    pub interface: &'a str,
    pub mtu: Option<u32>,
    pub addresses: Vec<String>,
    pub nameservers: Vec<String>,
    /// Space-separated.
    pub search: String,
    pub routes: Vec<LinkRoute>,
}

/// `to` is absent for a default route.
pub struct LinkRoute {
    pub to: Option<String>,
    pub via: String,
}

/// The same for netplan (netplan(5)). Strings are JSON strings, as in every YAML of ours.
#[derive(Template)]
#[template(path = "netplan.yaml", escape = "yml")]
pub struct Netplan<'a> {
    pub id: &'a str,
    /// What the definition had that is none of ours, each value as JSON.
    pub kept: Vec<(String, String)>,
    pub mtu: Option<u32>,
    pub addresses: Vec<String>,
    pub nameservers: Vec<String>,
    pub search: Vec<String>,
    pub routes: Vec<LinkRoute>,
}

/// The same for NetworkManager (nm-settings-keyfile(5)).
#[derive(Template)]
#[template(path = "link.nmconnection", escape = "none")]
pub struct Keyfile<'a> {
    pub interface: &'a str,
    pub uuid: String,
    pub mtu: Option<u32>,
    pub families: Vec<KeyfileFamily>,
}

/// One of its two sections for addresses.
pub struct KeyfileFamily {
    pub name: &'static str,
    pub method: &'static str,
    pub addresses: Vec<String>,
    pub gateway: Option<String>,
    pub routes: Vec<(String, String)>,
    pub dns: Vec<String>,
    pub search: Vec<String>,
}

/// The same for ifupdown (interfaces(5)).
#[derive(Template)]
#[template(path = "interfaces", escape = "none")]
pub struct Interfaces<'a> {
    pub interface: &'a str,
    pub stanzas: Vec<Stanza>,
}

/// One address.
pub struct Stanza {
    pub family: &'static str,
    pub address: String,
    pub gateway: Option<String>,
    pub mtu: Option<u32>,
    /// Space-separated.
    pub nameservers: String,
    /// Space-separated.
    pub search: String,
    pub routes: Vec<(String, String)>,
}

/// resolv.conf(5), for a manager that leaves it to others.
#[derive(Template)]
#[template(path = "resolv.conf", escape = "none")]
pub struct ResolvConf {
    pub nameservers: Vec<String>,
    /// Space-separated.
    pub search: String,
}

/// Tells cloud-init to leave the network alone.
#[derive(Template)]
#[template(path = "cloud-init.cfg")]
pub struct CloudInit;
