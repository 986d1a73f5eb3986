//! Which addresses a host can have, and through which routers it can send.

use std::hash::Hasher as _;
use std::net::{IpAddr, Ipv6Addr};

use siphasher::sip::SipHasher13;
use smoltcp::wire::{IpAddress, IpCidr, Ipv6Cidr};

/// Why a host cannot have an address, or a gateway.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum AddressError {
    /// The unspecified, a loopback, a multicast, a reserved or the limited broadcast address, or one of IPv4 that is
    /// written as one of IPv6.
    #[error("{0} is not an address that a host on a network can have; give one of the network's")]
    NotHost(IpAddr),
    /// The first address of a network stands for the network, or for all its routers (RFC 1122, section 3.2.1.3;
    /// RFC 4291, section 2.6.1).
    #[error("{0} is the address of the network itself; give one of the addresses behind it")]
    Network(IpCidr),
    /// The last address of an IPv4 network stands for all its hosts.
    #[error("{0} is the broadcast address of its network; give one of the addresses before it")]
    Broadcast(IpCidr),
    /// A gateway is reached without a gateway.
    #[error("the gateway {0} is in no network of the host's own; give a gateway of one of them")]
    GatewayElsewhere(IpAddr),
    /// A gateway is another host.
    #[error("the gateway {0} is the host's own address; give that of the router")]
    GatewayIsOwn(IpAddr),
}

/// Whether an address stands for one host, as far as that shows by itself.
pub(crate) fn is_host(ip: IpAddr) -> bool {
    match ip {
        // 0/8 is "this network", 224/4 multicast, 240/4 reserved and the limited broadcast address.
        IpAddr::V4(v4) => v4.octets()[0] != 0 && v4.octets()[0] < 224 && !v4.is_loopback(),
        IpAddr::V6(v6) => {
            let is_special = v6.is_unspecified() || v6.is_loopback() || v6.is_multicast();
            !is_special && v6.to_ipv4_mapped().is_none()
        }
    }
}

/// Whether a host can have this address in the network of this prefix. Of networks of two addresses, or of one, both
/// are hosts' (RFC 3021; RFC 6164).
///
/// # Errors
/// [`AddressError`] says why not.
pub fn check_own(cidr: &IpCidr) -> Result<(), AddressError> {
    let ip = IpAddr::from(cidr.address());
    if !is_host(ip) {
        return Err(AddressError::NotHost(ip));
    }
    let (network, broadcast) = match cidr {
        IpCidr::Ipv4(cidr) if cidr.prefix_len() < 31 => {
            (Some(IpAddr::from(cidr.network().address())), cidr.broadcast().map(IpAddr::from))
        }
        IpCidr::Ipv6(v6) if v6.prefix_len() < 127 => {
            let host = u128::MAX.checked_shr(v6.prefix_len().into()).unwrap_or(0);
            ((v6.address().to_bits() & host == 0).then_some(ip), None)
        }
        _ => (None, None),
    };
    if network == Some(ip) {
        return Err(AddressError::Network(*cidr));
    }
    if broadcast == Some(ip) { Err(AddressError::Broadcast(*cidr)) } else { Ok(()) }
}

/// Whether a host with these addresses can reach others through this gateway: a host of one of its networks, or one with
/// a link-local address.
///
/// # Errors
/// [`AddressError`] says why not.
pub fn check_gateway(gateway: IpAddr, own: &[IpCidr]) -> Result<(), AddressError> {
    let address = IpAddress::from(gateway);
    let link_local = matches!(gateway, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let near = own.iter().find(|cidr| cidr.contains_addr(&address));
    if own.iter().any(|cidr| cidr.address() == address) {
        return Err(AddressError::GatewayIsOwn(gateway));
    }
    match near {
        Some(cidr) => match check_own(&IpCidr::new(address, cidr.prefix_len())) {
            // The routers of an IPv6 network have its first address in common.
            Err(AddressError::Network(IpCidr::Ipv6(_))) => Ok(()),
            checked => checked,
        },
        None if link_local => Ok(()),
        None => {
            check_own(&IpCidr::new(address, if gateway.is_ipv4() { 32 } else { 128 }))?;
            Err(AddressError::GatewayElsewhere(gateway))
        }
    }
}

/// The link-local address that a host with IPv6 addresses has beside them (RFC 4291, section 2.8), if none of them is one:
/// what routers and switches expect its questions and reports to be from. The same at each start, and another than that of
/// a kernel that shares the Ethernet address (RFC 7217, of which the secret has no purpose on a server).
pub(crate) fn link_local_beside(mac: &[u8; 6], own: &[IpCidr]) -> Option<IpCidr> {
    let v6 = own.iter().filter_map(|cidr| match cidr {
        IpCidr::Ipv6(cidr) => Some(cidr.address()),
        IpCidr::Ipv4(_) => None,
    });
    let mut hasher = SipHasher13::new_with_key(b"link-local of us");
    hasher.write(mac);
    let mut has_any = false;
    for address in v6 {
        if address.is_unicast_link_local() {
            return None;
        }
        has_any = true;
        hasher.write(&address.octets());
    }
    let address = Ipv6Addr::from(0xfe80 << 112 | u128::from(hasher.finish()));
    has_any.then(|| Ipv6Cidr::new(address, 64).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_local_address_is_the_same_at_each_start_and_another_than_that_of_others() {
        let own =
            |texts: &[&str]| -> Vec<IpCidr> { texts.iter().map(|text| text.parse().unwrap()).collect() };
        let (mac, one) = ([2, 0, 0, 0, 0, 1], own(&["10.0.0.2/24", "fd00::2/64"]));
        let address = link_local_beside(&mac, &one).expect("it has IPv6");
        assert_eq!(link_local_beside(&mac, &one), Some(address));
        assert!("fe80::/64".parse::<IpCidr>().unwrap().contains_addr(&address.address()));
        assert_eq!(check_own(&address), Ok(()));
        assert_ne!(link_local_beside(&[2, 0, 0, 0, 0, 2], &one), Some(address));
        assert_ne!(link_local_beside(&mac, &own(&["fd00::3/64"])), Some(address));
        assert_eq!(link_local_beside(&mac, &own(&["10.0.0.2/24"])), None, "it has no IPv6");
        assert_eq!(link_local_beside(&mac, &own(&["fd00::2/64", "fe80::2/64"])), None, "it has one");
    }

    fn own(text: &str) -> Result<(), AddressError> {
        check_own(&text.parse().unwrap())
    }

    #[test]
    fn hosts_have_addresses_of_hosts() {
        for good in
            ["10.0.0.2/24", "10.0.0.0/31", "10.0.0.1/31", "10.0.0.0/32", "192.168.0.255/23", "fd00::2/64"]
        {
            assert_eq!(own(good), Ok(()), "{good}");
        }
        for good in ["fd00::/127", "fd00::1/127", "fd00::/128", "fe80::1/10", "2001:db8::ffff/112"] {
            assert_eq!(own(good), Ok(()), "{good}");
        }
        for bad in
            ["0.0.0.0/0", "0.1.2.3/8", "127.0.0.1/8", "224.0.0.1/4", "240.0.0.1/8", "255.255.255.255/32"]
        {
            assert!(matches!(own(bad), Err(AddressError::NotHost(_))), "{bad}");
        }
        for bad in ["::/0", "::1/128", "ff02::1/16", "::ffff:10.0.0.2/96"] {
            assert!(matches!(own(bad), Err(AddressError::NotHost(_))), "{bad}");
        }
        for bad in ["10.0.0.0/24", "10.0.0.0/30", "fd00::/64", "fd00::/126"] {
            assert!(matches!(own(bad), Err(AddressError::Network(_))), "{bad}");
        }
        for bad in ["10.0.0.255/24", "10.0.0.3/30", "192.168.1.255/24"] {
            assert!(matches!(own(bad), Err(AddressError::Broadcast(_))), "{bad}");
        }
    }

    #[test]
    fn gateways_are_neighbors() {
        let own: Vec<IpCidr> =
            ["10.0.0.2/24", "10.1.0.0/31", "fd00::2/64"].map(|text| text.parse().unwrap()).to_vec();
        let check = |text: &str| check_gateway(text.parse().unwrap(), &own);
        for good in ["10.0.0.1", "10.1.0.1", "fd00::1", "fd00::", "fe80::1"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for far in ["10.0.1.1", "192.0.2.1", "fd01::1"] {
            assert!(matches!(check(far), Err(AddressError::GatewayElsewhere(_))), "{far}");
        }
        for own in ["10.0.0.2", "fd00::2"] {
            assert!(matches!(check(own), Err(AddressError::GatewayIsOwn(_))), "{own}");
        }
        assert!(matches!(check("10.0.0.0"), Err(AddressError::Network(_))));
        assert!(matches!(check("10.0.0.255"), Err(AddressError::Broadcast(_))));
        for bad in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "::", "::1", "ff02::2"] {
            assert!(matches!(check(bad), Err(AddressError::NotHost(_))), "{bad}");
        }
    }
}
