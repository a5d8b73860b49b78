//! Where tenants' URLs may lead: policy, without any I/O.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use url::{Host, Url};

use crate::config::OutboundConfig;

/// The longest URL that is called, in bytes.
pub const MAX_URL_BYTES: usize = 2_048;

/// Why a URL is not called. The words are for the tenant who chose it, and hold nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UrlRefused {
    /// Another scheme than `http` and `https`.
    #[error("only http and https URLs are called")]
    Scheme,
    /// `user:password@`.
    #[error("a URL must not carry a user name or a password")]
    Userinfo,
    /// No host.
    #[error("the URL has no host")]
    Host,
    /// A port that isn't 80, 443 or one that the operator allows.
    #[error("this port is not allowed")]
    Port,
    /// Too long.
    #[error("a URL has at most 2048 bytes")]
    Length,
    /// The address, or every address of the name, isn't public.
    #[error("the URL does not lead to a public address")]
    Address,
}

impl UrlRefused {
    /// A stable word for it.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Scheme => "scheme",
            Self::Userinfo => "userinfo",
            Self::Host => "host",
            Self::Port => "port",
            Self::Length => "length",
            Self::Address => "address",
        }
    }
}

/// What may be called: public addresses, and what the operator allows besides.
#[derive(Debug, Clone)]
pub struct Guard {
    allow_cidrs: Vec<IpNet>,
    allow_ports: Vec<u16>,
}

impl Guard {
    /// From the settings.
    #[must_use]
    pub fn new(config: &OutboundConfig) -> Self {
        Self { allow_cidrs: config.allow_cidrs.clone(), allow_ports: config.allow_ports.clone() }
    }

    /// Whether an address may be called. An IPv4 address in IPv6 clothes is judged as what it is.
    #[must_use]
    pub fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.allow_cidrs.iter().any(|net| net.contains(&address)) || is_public(address)
    }

    /// Checks what can be seen of a URL without asking the network: scheme, port, user, and the host if it is an address
    /// or a name that can only mean this machine or its network.
    ///
    /// # Errors
    /// [`UrlRefused`].
    pub fn check_url(&self, url: &Url) -> Result<(), UrlRefused> {
        if url.as_str().len() > MAX_URL_BYTES {
            return Err(UrlRefused::Length);
        }
        if !matches!(url.scheme(), "http" | "https") {
            return Err(UrlRefused::Scheme);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(UrlRefused::Userinfo);
        }
        match url.port_or_known_default() {
            Some(80 | 443) => {}
            Some(port) if self.allow_ports.contains(&port) => {}
            _ => return Err(UrlRefused::Port),
        }
        match url.host().ok_or(UrlRefused::Host)? {
            Host::Ipv4(address) if self.allows(address.into()) => Ok(()),
            Host::Ipv6(address) if self.allows(address.into()) => Ok(()),
            Host::Domain(name) if self.allows_name(name) => Ok(()),
            _ => Err(UrlRefused::Address),
        }
    }

    /// Whether a name may be looked up at all.
    fn allows_name(&self, name: &str) -> bool {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        if name == "localhost" || name.ends_with(".localhost") {
            return self.allows(Ipv4Addr::LOCALHOST.into()) || self.allows(Ipv6Addr::LOCALHOST.into());
        }
        // RFC 6762, RFC 8375 and the private-use name of ICANN: never public. A name of one label is completed from the
        // search list of this machine's network.
        let local = [".local", ".internal", ".home.arpa"].iter().any(|suffix| name.ends_with(suffix));
        // An operator who allows more than the loopback has a network where such names may be meant.
        name.contains('.') && !local || self.allow_cidrs.iter().any(|net| !net.network().is_loopback())
    }
}

/// Networks that are not the public internet, from the IANA special-purpose registries.
const NOT_PUBLIC_V4: [(Ipv4Addr, u8); 15] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),       // this network
    (Ipv4Addr::new(10, 0, 0, 0), 8),      // private
    (Ipv4Addr::new(100, 64, 0, 0), 10),   // carrier-grade NAT
    (Ipv4Addr::new(127, 0, 0, 0), 8),     // loopback
    (Ipv4Addr::new(169, 254, 0, 0), 16),  // link-local, cloud metadata
    (Ipv4Addr::new(172, 16, 0, 0), 12),   // private
    (Ipv4Addr::new(192, 0, 0, 0), 24),    // protocol assignments
    (Ipv4Addr::new(192, 0, 2, 0), 24),    // documentation
    (Ipv4Addr::new(192, 88, 99, 0), 24),  // 6to4 relays
    (Ipv4Addr::new(192, 168, 0, 0), 16),  // private
    (Ipv4Addr::new(198, 18, 0, 0), 15),   // benchmarks
    (Ipv4Addr::new(198, 51, 100, 0), 24), // documentation
    (Ipv4Addr::new(203, 0, 113, 0), 24),  // documentation
    (Ipv4Addr::new(224, 0, 0, 0), 4),     // multicast
    (Ipv4Addr::new(240, 0, 0, 0), 4),     // reserved, broadcast
];

/// Within 2000::/3, which is all of IPv6 that is routed publicly.
const NOT_PUBLIC_V6: [(Ipv6Addr, u8); 5] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23), // protocol assignments, Teredo, ORCHID
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32), // documentation
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16), // 6to4: holds any IPv4 address
    (Ipv6Addr::new(0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0), 48), // AS112
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20), // documentation
];

/// What is routed publicly in IPv6. Everything else (loopback, mapped and compatible IPv4, 64:ff9b::/96, unique local,
/// link-local, multicast, 100::/64, 5f00::/16 …) lies outside of it.
const GLOBAL_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !NOT_PUBLIC_V4.iter().any(|&(net, bits)| in_v4(address, net, bits)),
        IpAddr::V6(address) => {
            in_v6(address, GLOBAL_V6.0, GLOBAL_V6.1)
                && !NOT_PUBLIC_V6.iter().any(|&(net, bits)| in_v6(address, net, bits))
        }
    }
}

fn in_v4(address: Ipv4Addr, net: Ipv4Addr, bits: u8) -> bool {
    Ipv4Net::new(net, bits).is_ok_and(|net| net.contains(&address))
}

fn in_v6(address: Ipv6Addr, net: Ipv6Addr, bits: u8) -> bool {
    Ipv6Net::new(net, bits).is_ok_and(|net| net.contains(&address))
}
