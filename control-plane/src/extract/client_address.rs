//! Where a request comes from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use axum::{
    extract::{ConnectInfo, FromRequestParts},
    http::{HeaderMap, request::Parts},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{error::ApiError, state::App};

/// The address of the caller: that of the connection, or, if that is one of `TRUSTED_PROXIES`, the nearest one in
/// `X-Forwarded-For` that isn't. What a caller writes into the header by itself stands further left and is never reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientAddress(IpAddr);

impl ClientAddress {
    /// From the connection and the headers.
    fn of(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> Self {
        let is_proxy = |address: &IpAddr| trusted.iter().any(|net| net.contains(address));
        let mut nearest = peer.to_canonical();
        let forwarded: Vec<&str> = headers
            .get_all("x-forwarded-for")
            .iter()
            .flat_map(|value| value.to_str().unwrap_or_default().split(','))
            .map(str::trim)
            .collect();
        for hop in forwarded.iter().rev() {
            if !is_proxy(&nearest) {
                break;
            }
            let Some(address) = address_of(hop) else { break };
            nearest = address.to_canonical();
        }
        Self(nearest)
    }

    /// Whether it lies in one of these networks.
    #[must_use]
    pub fn is_in(self, networks: &[IpNet]) -> bool {
        networks.iter().any(|network| network.contains(&self.0))
    }

    /// What counts as one caller: an IPv4 address, or the /64 that an IPv6 host has to itself.
    #[must_use]
    pub fn host(self) -> String {
        match self.0 {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => network_v6(address, 64),
        }
    }

    /// Roughly where it is, for showing a person their logins: /24 or /48.
    #[must_use]
    pub fn coarse(self) -> String {
        match self.0 {
            IpAddr::V4(address) => Ipv4Net::new_assert(address, 24).trunc().to_string(),
            IpAddr::V6(address) => network_v6(address, 48),
        }
    }
}

/// The address of a hop. Some proxies write its port too, and then brackets around one of IPv6.
fn address_of(hop: &str) -> Option<IpAddr> {
    let bare = hop.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(hop);
    bare.parse().ok().or_else(|| hop.parse::<SocketAddr>().ok().map(|with_port| with_port.ip()))
}

fn network_v6(address: Ipv6Addr, prefix: u8) -> String {
    Ipv6Net::new_assert(address, prefix).trunc().to_string()
}

impl FromRequestParts<App> for ClientAddress {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        Ok(Self::of_request(parts, app))
    }
}

impl ClientAddress {
    /// The address that a request comes from.
    #[must_use]
    pub fn of_request(parts: &Parts, app: &App) -> Self {
        // Every listener serves with its peers' addresses; a router that is called without one has no peer but itself.
        let peer = parts
            .extensions
            .get::<ConnectInfo<SocketAddr>>()
            .map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |connection| connection.0.ip());
        Self::of(peer, &parts.headers, &app.config.http.trusted_proxies)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(peer: &str, forwarded: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append("x-forwarded-for", line.parse().unwrap());
        }
        let trusted = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        ClientAddress::of(peer.parse().unwrap(), &headers, &trusted).0.to_string()
    }

    #[test]
    fn only_proxies_of_ours_are_believed_and_only_about_their_own_peer() {
        assert_eq!(of("203.0.113.7", &["198.51.100.1"]), "203.0.113.7", "not a proxy");
        assert_eq!(of("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(of("10.0.0.1", &["198.51.100.1"]), "198.51.100.1");
        assert_eq!(of("10.0.0.1", &["8.8.8.8, 198.51.100.1"]), "198.51.100.1", "the left one is the caller's own word");
        assert_eq!(of("10.0.0.1", &["8.8.8.8", "198.51.100.1, 10.0.0.9"]), "198.51.100.1", "through two proxies");
        assert_eq!(of("10.0.0.1", &["8.8.8.8, nonsense"]), "10.0.0.1");
        assert_eq!(of("10.0.0.1", &["8.8.8.8:80, 198.51.100.1:51234, 10.0.0.9:1"]), "198.51.100.1", "with ports");
        assert_eq!(of("10.0.0.1", &["[2001:db8::1]:51234"]), "2001:db8::1");
        assert_eq!(of("10.0.0.1", &["[2001:db8::1]"]), "2001:db8::1");
        assert_eq!(of("::ffff:10.0.0.1", &["::ffff:198.51.100.1"]), "198.51.100.1");
    }

    #[test]
    fn an_ipv6_host_is_its_network() {
        let address = ClientAddress("2001:db8:1:2:3:4:5:6".parse().unwrap());
        assert_eq!((address.host().as_str(), address.coarse().as_str()), ("2001:db8:1:2::/64", "2001:db8:1::/48"));
        let address = ClientAddress("203.0.113.7".parse().unwrap());
        assert_eq!((address.host().as_str(), address.coarse().as_str()), ("203.0.113.7", "203.0.113.0/24"));
    }
}
