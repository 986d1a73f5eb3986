//! Giving a store to devices: which memory they may have, and which would be lost or overwritten.

use std::path::PathBuf;

use dpdk::{AreaError, Eal, ExternalArea, PortError, PortId};
use pmem::{Domain, Kind, RegionInfo, ShardSeed};

/// The buffers of one shard, within the reach of devices. There is no other way to receive into a store.
#[derive(Clone, Copy, Debug)]
pub struct Reach(ExternalArea);

/// Why devices must not or cannot have a store.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// Physical addresses of pages that move.
    #[error(
        "{} is a {kind}, whose pages the kernel may move at any time; with --iova-mode=pa use device-DAX or a file \
         on a DAX file system", path.display()
    )]
    PagesMove {
        /// The store.
        path: PathBuf,
        /// What it lies on.
        kind: Kind,
    },
    /// DMA into pages that the kernel writes back by itself.
    #[error(
        "{device} writes to memory by itself, and {} is a {kind}: the kernel does not see that a page which msync has \
         cleaned is written again, and would never write what was acknowledged. Use device-DAX or a file on a DAX \
         file system, or serve the file as a disk (domain disk); to try things out, memory: or a device whose frames the kernel receives (net_af_packet)",
        path.display()
    )]
    Unseen {
        /// The device.
        device: String,
        /// The store.
        path: PathBuf,
        /// What it lies on.
        kind: Kind,
    },
    /// The memory cannot be used for packets.
    #[error(transparent)]
    Area(#[from] AreaError),
    /// The device is gone.
    #[error(transparent)]
    Port(#[from] PortError),
}

impl Reach {
    /// Lets the devices of `ports` read and write a shard's buffers by DMA, until the process ends. `store` says what
    /// they lie on. Nothing is written: before recovery, so that a store which devices cannot have stays as it is.
    ///
    /// # Errors
    /// [`ReachError`]: the devices cannot have it, or what they wrote there could be lost.
    pub fn new(
        eal: Eal,
        store: &RegionInfo,
        shard: &ShardSeed,
        ports: &[PortId],
    ) -> Result<Self, ReachError> {
        let reach = Self::without_dma_map(eal, store, shard, ports)?;
        for port in ports {
            reach.0.map_dma(*port)?;
        }
        Ok(reach)
    }

    /// As [`new`](Self::new), but for what an IOMMU has to be told: devices behind one reach nothing.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn without_dma_map(
        eal: Eal,
        store: &RegionInfo,
        shard: &ShardSeed,
        ports: &[PortId],
    ) -> Result<Self, ReachError> {
        if eal.uses_physical_addresses() {
            check_physical(store)?;
        }
        for port in ports {
            check_dma(&port.name(), port.info()?.does_dma, store)?;
        }
        let (base, len_bytes) = shard.arena_memory();
        #[expect(clippy::disallowed_methods, reason = "this is where it is checked")]
        let area = ExternalArea::register(eal, base, len_bytes)?;
        Ok(Self(area))
    }

    /// The memory, as devices see it.
    pub fn area(self) -> ExternalArea {
        self.0
    }
}

/// Refuses a store whose pages may get other physical addresses, and says what those of the others ask for.
fn check_physical(store: &RegionInfo) -> Result<(), ReachError> {
    let path = store.path.display();
    match store.kind {
        Kind::DeviceDax => {
            tracing::warn!("the NIC uses physical addresses: nothing keeps it from any other memory");
        }
        Kind::FsDax => tracing::warn!(
            "the NIC uses physical addresses, and the file system does not know: while this program runs, do not \
             truncate, delete, move, defragment or reflink {path}, or the NIC will write into other files' blocks"
        ),
        kind => return Err(ReachError::PagesMove { path: store.path.clone(), kind }),
    }
    Ok(())
}

/// Refuses to have a device write to pages of the page cache: before Linux 6.5 nothing says that they are dirty, and
/// later ones do not pin them. A store that is written to a disk lies in memory of its own.
fn check_dma(device: &str, does_dma: bool, store: &RegionInfo) -> Result<(), ReachError> {
    if does_dma && store.domain == Domain::Msync {
        return Err(ReachError::Unseen {
            device: device.to_owned(),
            path: store.path.clone(),
            kind: store.kind,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use pmem::{DomainChoice, MEMORY, Options, Region};

    use super::*;

    const KINDS: [Kind; 6] =
        [Kind::DeviceDax, Kind::FsDax, Kind::File, Kind::VolatileFile, Kind::Memory, Kind::Medium];

    fn store_on(kind: Kind) -> RegionInfo {
        let options = Options { size: Some(8 << 20), ..Options::default() };
        let mut info = Region::open(MEMORY, &options).unwrap().info().clone();
        info.kind = kind;
        if kind == Kind::File {
            info.domain = Domain::Msync;
        }
        info
    }

    #[test]
    fn hardware_writes_to_the_memory_of_a_store_on_a_disk() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let options = Options { size: Some(8 << 20), domain: DomainChoice::Disk, ..Options::default() };
        let region = Region::open(folder.path().join("store"), &options).unwrap();
        assert_eq!(region.info().kind, Kind::File);
        assert!(check_dma("0000:02:00.0", true, region.info()).is_ok());
    }

    #[test]
    fn physical_addresses_are_for_pages_that_stay_where_they_are() {
        for kind in KINDS {
            let refusal = check_physical(&store_on(kind)).err().map(|refusal| refusal.to_string());
            let stays = matches!(kind, Kind::DeviceDax | Kind::FsDax);
            assert_eq!(refusal.is_none(), stays, "{kind}: {refusal:?}");
            assert!(refusal.is_none_or(|refusal| refusal.contains("use device-DAX")), "{kind}");
        }
    }

    #[test]
    fn hardware_writes_to_no_page_of_the_page_cache() {
        for kind in KINDS {
            assert!(
                check_dma("net_tap0", false, &store_on(kind)).is_ok(),
                "the kernel's copies make pages dirty"
            );
            let refusal =
                check_dma("0000:02:00.0", true, &store_on(kind)).err().map(|refusal| refusal.to_string());
            assert_eq!(refusal.is_some(), kind == Kind::File, "{kind}: {refusal:?}");
            let remedy =
                |refusal: String| refusal.contains("0000:02:00.0") && refusal.contains("net_af_packet");
            assert!(refusal.is_none_or(remedy), "{kind}");
        }
    }
}
