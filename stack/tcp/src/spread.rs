//! Which core a device gives a flow's segments to that spreads them by itself, so that connections which a core opens come
//! back to it: the hash that receive side scaling takes (Toeplitz', as Microsoft specifies it for all), by the device's own
//! key, and the device's own table.

use crate::flow::FlowKey;

/// Bits that are hashed at most: the addresses of IPv6, and the ports.
const MAX_BITS: usize = 8 * (2 * 16 + 2 * 2);

/// Bytes of the key that so many bits take.
const LEAST_KEY_BYTES: usize = MAX_BITS / 8 + 4;

/// How a device spreads received segments over queues, each of which is a core's.
#[derive(Clone, Debug)]
pub struct DeviceSpread {
    /// What each bit that is set adds to the hash.
    windows: Box<[u32; MAX_BITS]>,
    table: Box<[u16]>,
    hashes_ports_v4: bool,
    hashes_ports_v6: bool,
}

/// Why it cannot be known to which core a device gives a flow's segments.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum SpreadError {
    /// A key that does not reach over addresses and ports.
    #[error("the device's key has {0} bytes; at least {LEAST_KEY_BYTES} are hashed with")]
    Key(usize),
    /// A core that gets nothing.
    #[error("the device's table of {entries} entries gives nothing to core {core}")]
    Table {
        /// Entries of the table.
        entries: usize,
        /// The core.
        core: u16,
    },
}

impl DeviceSpread {
    /// A device with this key and this table of queues, which has some for each of `cores` cores. Whether it hashes the ports
    /// of IPv4's and IPv6's segments, too, or their addresses alone.
    ///
    /// # Errors
    /// [`SpreadError`]: no port would lead to some core.
    pub fn new(
        key: &[u8],
        table: &[u16],
        cores: u16,
        [hashes_ports_v4, hashes_ports_v6]: [bool; 2],
    ) -> Result<Self, SpreadError> {
        let window = |bit: usize| {
            let bytes = key.get(bit / 8..bit / 8 + 5)?;
            let bits = bytes.iter().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
            Some((bits >> (8 - bit % 8)) as u32)
        };
        let mut windows = Box::new([0; MAX_BITS]);
        for (bit, place) in windows.iter_mut().enumerate() {
            *place = window(bit).ok_or(SpreadError::Key(key.len()))?;
        }
        if let Some(core) = (0..cores).find(|core| !table.contains(core)) {
            return Err(SpreadError::Table { entries: table.len(), core });
        }
        Ok(Self { windows, table: table.into(), hashes_ports_v4, hashes_ports_v6 })
    }

    /// The core that gets what the flow's remote end sends; none if no port that this host chooses decides it.
    pub(crate) fn core_of(&self, flow: &FlowKey) -> Option<u16> {
        let hashes_ports = if flow.is_v4() { self.hashes_ports_v4 } else { self.hashes_ports_v6 };
        hashes_ports.then(|| self.table[self.hash(flow) as usize % self.table.len()])
    }

    fn hash(&self, flow: &FlowKey) -> u32 {
        let ports = u32::from(flow.remote_port) << 16 | u32::from(flow.local_port);
        let addresses = [flow.remote, flow.local].map(|ip| ip.to_bits());
        let mut at = 0;
        let mut hash = 0;
        let mut add = |value: u128, bits: usize| {
            let mut left = value << (128 - bits);
            while left != 0 {
                let next = left.leading_zeros() as usize;
                hash ^= self.windows[at + next];
                left ^= 1 << (127 - next);
            }
            at += bits;
        };
        let address_bits = if flow.is_v4() { 32 } else { 128 };
        addresses.into_iter().for_each(|address| add(address, address_bits));
        add(ports.into(), 32);
        hash
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    /// The key and the vectors of the specification's verification suite.
    const KEY: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
        0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
        0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    #[test]
    fn the_hash_is_that_of_the_verification_suite() {
        let spread = DeviceSpread::new(&KEY, &[0], 1, [true, true]).unwrap();
        for (to, from, hash) in [
            ("161.142.100.80:1766", "66.9.149.187:2794", 0x51cc_c178),
            ("65.69.140.83:4739", "199.92.111.2:14230", 0xc626_b0ea),
            ("12.22.207.184:38024", "24.19.198.95:12898", 0x5c2b_394a),
            ("209.142.163.6:2217", "38.27.205.30:48228", 0xafc7_327f),
            ("202.188.127.2:1303", "153.39.163.191:44251", 0x10e8_28a2),
            ("[3ffe:2501:200:3::1]:1766", "[3ffe:2501:200:1fff::7]:2794", 0x4020_7d3d),
            ("[ff02::1]:4739", "[3ffe:501:8::260:97ff:fe40:efab]:14230", 0xdde5_1bbf),
            ("[fe80::200:f8ff:fe21:67cf]:38024", "[3ffe:1900:4545:3:200:f8ff:fe21:67cf]:44251", 0x02d1_feef),
        ] {
            let at = |text: &str| text.parse::<SocketAddr>().unwrap();
            assert_eq!(spread.hash(&FlowKey::new(at(to), at(from))), hash, "{from} to {to}");
        }
    }

    #[test]
    fn what_would_leave_a_core_without_ports_is_refused() {
        let new =
            |key: &[u8], table: &[u16], cores| DeviceSpread::new(key, table, cores, [true, true]).map(drop);
        assert_eq!(new(&KEY, &[0, 1, 0, 1], 2), Ok(()));
        assert_eq!(new(&KEY, &[0; 4], 2), Err(SpreadError::Table { entries: 4, core: 1 }));
        assert_eq!(new(&KEY, &[], 1), Err(SpreadError::Table { entries: 0, core: 0 }));
        assert_eq!(new(&KEY[..16], &[0, 1], 2), Err(SpreadError::Key(16)));
    }
}
