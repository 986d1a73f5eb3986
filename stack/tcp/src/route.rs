//! Where a packet goes first: to its receiver, or to the router of the most specific route.

use std::net::IpAddr;
use std::str::FromStr;

use smoltcp::wire::{IpAddress, IpCidr};

use crate::address::{AddressError, check_gateway, is_host};
use crate::config::Config;
use crate::frame::Local;

/// Most routes beside those to the gateways.
pub const MAX_ROUTES: usize = 64;

/// Which router has the packets to a network, instead of the gateway. Written as `10.0.0.0/8=192.0.2.1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The network.
    pub to: IpCidr,
    /// The router, in a network of the host's own.
    pub via: IpAddr,
}

/// Why there cannot be such a route.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum RouteError {
    /// Not a route.
    #[error("write a network, its prefix length and a router, such as 10.0.0.0/8=192.0.2.1")]
    Form,
    /// The router speaks another version of IP.
    #[error("the route to {to} is by {via}, of the other version of IP; give a router of the network's own")]
    Version {
        /// The network.
        to: IpCidr,
        /// The router.
        via: IpAddr,
    },
    /// An address behind its network's prefix.
    #[error("{to} has bits behind its prefix; the network is {network}")]
    NotNetwork {
        /// What was given.
        to: IpCidr,
        /// What was probably meant.
        network: IpCidr,
    },
    /// No host is there.
    #[error("hosts of {0} cannot be spoken with over TCP; give a network of hosts")]
    NoHosts(IpCidr),
    /// A router that cannot be reached.
    #[error("no route to {to}: {error}")]
    Router {
        /// The network.
        to: IpCidr,
        /// Why not.
        error: AddressError,
    },
    /// Two routers for one network.
    #[error("there are two routes to {0}; leave one out")]
    Twice(IpCidr),
    /// More than a host holds.
    #[error("{0} routes are configured; at most {MAX_ROUTES} are possible")]
    TooMany(usize),
}

impl FromStr for Route {
    type Err = RouteError;

    fn from_str(text: &str) -> Result<Self, RouteError> {
        let (to, via) = text.split_once('=').ok_or(RouteError::Form)?;
        let to = to.parse().map_err(|()| RouteError::Form)?;
        Ok(Self { to, via: via.parse().map_err(|_| RouteError::Form)? })
    }
}

/// Whether a host with the addresses `own` can send by these routes.
///
/// # Errors
/// [`RouteError`] says why not.
pub fn check_routes(routes: &[Route], own: &[IpCidr]) -> Result<(), RouteError> {
    if routes.len() > MAX_ROUTES {
        return Err(RouteError::TooMany(routes.len()));
    }
    for (place, Route { to, via }) in routes.iter().enumerate() {
        let (to, via) = (*to, *via);
        let address = IpAddr::from(to.address());
        if address.is_ipv4() != via.is_ipv4() {
            return Err(RouteError::Version { to, via });
        }
        let network = network_of(to);
        if network != to {
            return Err(RouteError::NotNetwork { to, network });
        }
        // The network of all addresses begins with one that is no host's.
        if to.prefix_len() >= 8 && !is_host(address) {
            return Err(RouteError::NoHosts(to));
        }
        check_gateway(via, own).map_err(|error| RouteError::Router { to, error })?;
        if routes[..place].iter().any(|other| other.to == to) {
            return Err(RouteError::Twice(to));
        }
    }
    Ok(())
}

pub(crate) fn network_of(cidr: IpCidr) -> IpCidr {
    let prefix = u32::from(cidr.prefix_len());
    let address = match IpAddr::from(cidr.address()) {
        IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() & u32::MAX.checked_shl(32 - prefix).unwrap_or(0)).into()),
        IpAddr::V6(v6) => {
            IpAddr::V6((v6.to_bits() & u128::MAX.checked_shl(128 - prefix).unwrap_or(0)).into())
        }
    };
    IpCidr::new(address.into(), cidr.prefix_len())
}

/// The routes of a host, the most specific ones first, and its gateways last.
#[derive(Clone, Debug)]
pub(crate) struct Routes(Vec<Route>);

impl Routes {
    pub(crate) fn new(config: &Config) -> Self {
        let all = |via: IpAddr| {
            let zero: IpAddress = match via {
                IpAddr::V4(_) => IpAddress::v4(0, 0, 0, 0),
                IpAddr::V6(_) => IpAddress::v6(0, 0, 0, 0, 0, 0, 0, 0),
            };
            Route { to: IpCidr::new(zero, 0), via }
        };
        let gateways = [config.gateway_v4.map(IpAddr::V4), config.gateway_v6.map(IpAddr::V6)];
        let gateways = gateways.into_iter().flatten().map(all);
        let mut routes: Vec<_> = config.routes.iter().copied().chain(gateways).collect();
        // Of equal ones the first that was given counts: the sort is stable.
        routes.sort_by_key(|route| std::cmp::Reverse(route.to.prefix_len()));
        Self(routes)
    }

    /// The host that gets a packet for `remote` first; none if there is no way. A route through a router counts more
    /// than an own network only if it is more specific.
    pub(crate) fn next_hop(&self, local: &Local, remote: IpAddr) -> Option<IpAddr> {
        let near = local.on_link_prefix(remote);
        let address = IpAddress::from(remote);
        let route = self.0.iter().find(|route| route.to.contains_addr(&address));
        match (route, near) {
            (Some(route), Some(near)) if route.to.prefix_len() > near => Some(route.via),
            (_, Some(_)) => Some(remote),
            (route, None) => route.map(|route| route.via),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(routes: &[&str]) -> Result<(), RouteError> {
        let own: Vec<IpCidr> = ["10.0.0.2/24", "fd00::2/64"].map(|text| text.parse().unwrap()).to_vec();
        let routes: Vec<Route> = routes.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        check_routes(&routes, &own)
    }

    #[test]
    fn routes_lead_to_networks_by_routers_that_can_be_reached() {
        let good = ["192.168.0.0/16=10.0.0.1", "2001:db8::/32=fd00::1", "2001:db8:1::/48=fe80::1"];
        assert_eq!(check(&good), Ok(()));
        assert_eq!(check(&["0.0.0.0/0=10.0.0.1", "::/0=fe80::1", "192.0.2.7/32=10.0.0.1"]), Ok(()));
        for bad in ["192.168.0.0/16", "192.168.0.0=10.0.0.1", "192.168.0.0/33=10.0.0.1", "a/8=b", ""] {
            assert_eq!(check(&[bad]), Err(RouteError::Form), "{bad}");
        }
        assert!(matches!(check(&["192.168.0.0/16=fd00::1"]), Err(RouteError::Version { .. })));
        let error = check(&["192.168.1.0/16=10.0.0.1"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "192.168.1.0/16 has bits behind its prefix; the network is 192.168.0.0/16"
        );
        assert!(matches!(check(&["2001:db8::1/32=fd00::1"]), Err(RouteError::NotNetwork { .. })));
        assert!(matches!(check(&["224.0.0.0/8=10.0.0.1"]), Err(RouteError::NoHosts(_))));
        assert!(matches!(check(&["192.168.0.0/16=10.0.1.1"]), Err(RouteError::Router { .. })));
        assert!(matches!(check(&["192.168.0.0/16=10.0.0.2"]), Err(RouteError::Router { .. })));
        let twice = ["192.168.0.0/16=10.0.0.1", "192.168.0.0/16=10.0.0.3"];
        assert!(matches!(check(&twice), Err(RouteError::Twice(_))));
    }
}
