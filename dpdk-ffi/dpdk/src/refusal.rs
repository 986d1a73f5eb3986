//! Devices that lose or corrupt frames in external memory, without saying so.

/// The device must not carry frames in external memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{driver} {harm}. {remedy}")]
pub struct WouldCorrupt {
    /// DPDK's name of the driver.
    pub driver: &'static str,
    /// What it does to such frames.
    pub harm: &'static str,
    /// What to use instead.
    pub remedy: &'static str,
}

const AF_XDP: WouldCorrupt = WouldCorrupt {
    driver: "net_af_xdp",
    harm: "receives into memory of its own, and sends what lies behind a frame's header instead of its payload",
    remedy: "Use net_af_packet on the same interface, or bind the NIC to vfio-pci",
};

const VIRTIO_USER: WouldCorrupt = WouldCorrupt {
    driver: "net_virtio_user",
    harm: "tells its peer nothing about external memory, so frames in it are lost or garbled",
    remedy: "Use net_tap or net_af_packet to reach the kernel, or net_vhost to reach a virtual machine",
};

const MEMIF_ZERO_COPY: WouldCorrupt = WouldCorrupt {
    driver: "net_memif with zero-copy=yes",
    harm: "shares EAL's own memory only, so frames in external memory are lost or garbled",
    remedy: "Leave zero-copy=yes away: in copy mode memif is exact",
};

/// Judges a device by its driver's or its own name, and its arguments.
pub(crate) fn check(name: &str, arguments: &str) -> Result<(), WouldCorrupt> {
    if name.starts_with("net_af_xdp") {
        Err(AF_XDP)
    } else if name.starts_with("net_virtio_user") || name.starts_with("virtio_user") {
        Err(VIRTIO_USER)
    } else if name.starts_with("net_memif")
        && arguments.split(',').any(|argument| argument.trim() == "zero-copy=yes")
    {
        Err(MEMIF_ZERO_COPY)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_memif_in_copy_mode_passes() {
        assert_eq!(check("net_memif0", "role=client,zero-copy=no"), Ok(()));
        assert_eq!(check("net_memif0", "role=client,zero-copy=yes"), Err(MEMIF_ZERO_COPY));
        assert_eq!(check("net_virtio_user3", "path=/dev/vhost-net"), Err(VIRTIO_USER));
        assert_eq!(check("net_af_xdp0", "iface=eth0"), Err(AF_XDP));
        assert_eq!(check("net_virtio", ""), Ok(()));
    }
}
