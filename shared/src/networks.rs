//! Networks as people write them.

use ipnet::{IpNet, Ipv4Net};

/// A network as addresses are compared with it: one of IPv4 addresses in IPv6 clothes (`::ffff:203.0.113.0/120`) is the network of IPv4 that
/// it stands for, since an address in such clothes is read as what it is, too. A wider one (`::/0`) is of IPv6.
#[must_use]
pub fn canonical(network: IpNet) -> IpNet {
    const CLOTHES: u8 = 96;
    let IpNet::V6(v6) = network else { return network };
    let bare = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(CLOTHES));
    bare.and_then(|(address, prefix)| Ipv4Net::new(address, prefix).ok()).map_or(network, IpNet::V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_mapped_addresses_is_the_one_of_ipv4() {
        for (written, meant) in [
            ("::ffff:203.0.113.0/120", "203.0.113.0/24"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("::ffff:203.0.113.7/128", "203.0.113.7/32"),
            ("::/0", "::/0"),
            ("::/95", "::/95"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("203.0.113.0/24", "203.0.113.0/24"),
        ] {
            assert_eq!(canonical(written.parse().unwrap()).to_string(), meant, "{written}");
        }
    }
}
