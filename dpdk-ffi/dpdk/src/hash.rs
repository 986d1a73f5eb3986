//! By which hash a device spreads what it receives over its queues.

use dpdk_sys as sys;

use crate::port::Port;

/// Bytes of the longest key there could be, and of one whose length the driver does not tell.
const MAX_KEY_BYTES: usize = 256;
const USUAL_KEY_BYTES: usize = 40;

/// Entries of a table that are asked for together, as the function's interface has it.
const GROUP_ENTRIES: usize = sys::RTE_ETH_RETA_GROUP_SIZE as usize;

/// A device's receive side scaling: the key of its hash (Toeplitz'), and which queue each value leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiveHash {
    /// The key.
    pub key: Vec<u8>,
    /// The queue of each value, modulo the number of entries.
    pub table: Vec<u16>,
    /// Whether the ports of TCP over IPv4 are hashed, or its addresses alone.
    pub tcp_v4: bool,
    /// Whether the ports of TCP over IPv6 are.
    pub tcp_v6: bool,
}

impl Port {
    /// How the device hashes what it receives, if it was told to and says how.
    pub fn receive_hash(&self) -> Option<ReceiveHash> {
        let _control = self.control();
        let id = self.id();
        let raw = id.device_info().ok()?;
        let mut key = vec![0; MAX_KEY_BYTES];
        let mut conf = sys::rte_eth_rss_conf {
            rss_key: key.as_mut_ptr(),
            rss_key_len: raw.hash_key_size,
            ..Default::default()
        };
        // SAFETY: the structure is writable, and the key is longer than any driver's, whose length has eight bits.
        if unsafe { sys::rte_eth_dev_rss_hash_conf_get(id.0, &mut conf) } != 0 {
            return None;
        }
        key.truncate(if raw.hash_key_size == 0 { USUAL_KEY_BYTES } else { raw.hash_key_size.into() });
        let entries = usize::from(raw.reta_size);
        let group = sys::rte_eth_rss_reta_entry64 { mask: u64::MAX, ..Default::default() };
        let mut groups = vec![group; entries.div_ceil(GROUP_ENTRIES)];
        if entries == 0 {
            return None;
        }
        // SAFETY: there is a writable group for as many entries as are asked for.
        if unsafe { sys::rte_eth_dev_rss_reta_query(id.0, groups.as_mut_ptr(), raw.reta_size) } != 0 {
            return None;
        }
        let table = groups.iter().flat_map(|group| group.reta).take(entries).collect();
        let hashes = |kind: u32| conf.rss_hf & u64::from(kind) != 0;
        Some(ReceiveHash {
            key,
            table,
            tcp_v4: hashes(sys::RTE_ETH_RSS_NONFRAG_IPV4_TCP),
            tcp_v6: hashes(sys::RTE_ETH_RSS_NONFRAG_IPV6_TCP),
        })
    }
}
