//! What goes wrong, and that the message says what to do.

mod support;

use dpdk::{AttachError, Eal, EalError, Pool, PoolConfig, Port, PortConfig, PortError};
use support::{in_namespace, isolated, unprivileged};

fn small_pool(eal: Eal) -> Pool {
    Pool::dram(eal, "small", &PoolConfig { mbufs: 255, cache: 0, ..PoolConfig::default() }).unwrap()
}

/// The message of an attempt to attach, which must fail.
fn refusal(eal: Eal, device: &str) -> String {
    eal.attach(device).expect_err("a refusal").to_string()
}

#[test]
fn the_eal_starts_once() {
    isolated("the_eal_starts_once", || {
        let eal = support::eal();
        assert!(eal.version().starts_with("DPDK 22.11"), "{}", eal.version());
        assert!(matches!(Eal::init(["--no-pci"]), Err(EalError::Repeated)));
    });
}

#[test]
fn eal_says_why_it_does_not_start() {
    isolated("eal_says_why_it_does_not_start", || {
        let error = Eal::init(["--vdev=net_nonsense0"]).unwrap_err().to_string();
        assert!(error.contains("net_nonsense0") && error.contains("EAL:"), "{error}");
        assert!(matches!(Eal::init(["a\0b"]), Err(EalError::Nul(_))));
    });
}

#[test]
fn no_device_at_all() {
    isolated("no_device_at_all", || {
        let eal = Eal::init(["--no-pci"]).unwrap();
        assert!(eal.ports().is_empty());
        let error = eal.first_port().unwrap_err().to_string();
        assert!(error.contains("dpdk-devbind.py --bind=vfio-pci"), "{error}");
    });
}

#[test]
fn unknown_devices() {
    isolated("unknown_devices", || {
        let eal = support::eal();
        let error = refusal(eal, "net_nonsense0");
        assert!(error.contains("net_nonsense0") && error.contains("spelling"), "{error}");
        let error = refusal(eal, "ffff:ff:1f.7");
        assert!(error.contains("No PCI device has this address"), "{error}");
        for name in ["", "net tap", "net_null0\0"] {
            assert!(matches!(eal.attach(name), Err(AttachError::Name(_))), "{name:?}");
        }
        let error = refusal(eal, "net_memif0,socket=/nowhere/at/all.sock,socket-abstract=no,role=server");
        assert!(error.contains("socket's folder"), "{error}");
    });
}

#[test]
fn devices_that_would_corrupt() {
    isolated("devices_that_would_corrupt", || {
        let eal = support::eal();
        for device in [
            "net_virtio_user0,path=/dev/vhost-net",
            "vdev:net_virtio_user0,path=/dev/vhost-net",
            "virtio_user0,path=/dev/vhost-net",
            "net_af_xdp0,iface=lo",
            "net_memif0,role=client,zero-copy=yes",
        ] {
            let error = eal.attach(device).unwrap_err();
            assert!(matches!(error, AttachError::WouldCorrupt(_)), "{device}: {error}");
            assert!(error.to_string().contains("Use ") || error.to_string().contains("Leave "), "{error}");
        }
        assert!(eal.ports().is_empty());
    });
}

#[test]
fn devices_that_would_corrupt_from_eal_arguments() {
    isolated("devices_that_would_corrupt_from_eal_arguments", || {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("memif.sock");
        let vdev = format!("--vdev=net_memif0,role=client,zero-copy=yes,socket={}", socket.display());
        let memory = ["--no-huge", "--no-shconf", "--single-file-segments", "-m", "64"];
        let eal = Eal::init(memory.into_iter().chain([vdev.as_str()])).unwrap();
        let error =
            Port::start(eal.first_port().unwrap(), &PortConfig::default(), &[small_pool(eal)]).unwrap_err();
        assert!(matches!(error, PortError::WouldCorrupt(_)), "{error}");
    });
}

#[test]
fn missing_permission_is_named() {
    unprivileged("missing_permission_is_named", || {
        let eal = support::eal();
        let error = refusal(eal, "net_af_packet0,iface=lo");
        assert!(
            error.contains("lacks CAP_NET_RAW and CAP_NET_ADMIN") && error.contains("unshare"),
            "{error}"
        );
        let error = refusal(eal, "net_tap0,iface=tap0");
        assert!(error.contains("lacks CAP_NET_ADMIN"), "{error}");
    });
}

#[test]
fn a_missing_interface_is_not_blamed_on_permission() {
    in_namespace("a_missing_interface_is_not_blamed_on_permission", || {
        let error = refusal(support::eal(), "net_af_packet0,iface=nothere");
        assert!(error.contains("nothere") && !error.contains("lacks"), "{error}");
    });
}

#[test]
fn ports_say_what_they_cannot_do() {
    isolated("ports_say_what_they_cannot_do", || {
        let eal = support::eal();
        let pool = small_pool(eal);
        let id = eal.attach("net_null0").unwrap();
        let start = |config: PortConfig, pools: &[Pool]| Port::start(id, &config, pools);
        let pools = std::slice::from_ref(&pool);
        let config = PortConfig::default();
        let error = start(PortConfig { rx_queues: 60_000, ..config.clone() }, pools).unwrap_err();
        assert!(matches!(error, PortError::Queues { wanted: 60_000, .. }), "{error}");
        assert!(matches!(start(config.clone(), &[]), Err(PortError::Pools { pools: 0, .. })));
        let error = start(PortConfig { mtu: 9000, ..config.clone() }, pools).unwrap_err();
        assert!(matches!(error, PortError::BufferTooSmall { needed_bytes: 9146, .. }), "{error}");
        assert!(matches!(start(PortConfig { mtu: 10, ..config.clone() }, pools), Err(PortError::Mtu { .. })));
        let mut port = start(config.clone(), pools).unwrap();
        assert!(matches!(start(config.clone(), pools), Err(PortError::InUse(_))));
        let queue = port.rx_queue(0).unwrap();
        assert!(matches!(port.rx_queue(0), Err(PortError::NoQueue { .. })));
        assert!(matches!(port.tx_queue(1), Err(PortError::NoQueue { .. })));
        drop(port);
        assert!(
            matches!(start(config.clone(), pools), Err(PortError::InUse(_))),
            "a queue still holds the port"
        );
        drop(queue);
        assert!(start(config.clone(), pools).is_err(), "the device is gone with its port");
        let id = eal.attach("net_null0").unwrap();
        Port::start(id, &config, pools).unwrap();
    });
}
