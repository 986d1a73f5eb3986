//! Binds the installed libdpdk: declarations through bindgen, static inlines through a generated C file.

#![allow(unsafe_code)]

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

/// The release whose structures and symbols the bindings are written for.
const DPDK_VERSION: &str = "22.11";

/// Of the drivers' libraries, which DPDK loads by itself, the one with functions that programs call.
const CALLED_DRIVER: &str = "rte_net_ring";

/// Needed by systemd's logind in DPDK's power library only; nothing here uses it.
const UNUSED_LIBRARIES: [&str; 2] = ["systemd", "dbus-1"];

const FUNCTIONS: [&str; 14] = [
    "dpdk_errno",
    "fclose",
    "fopencookie",
    "rte_bus_name",
    "rte_dev_(bus|devargs|dma_map|dma_unmap|name|numa_node|probe|remove)",
    "rte_eal_(cleanup|has_hugepages|init|iova_mode)",
    "rte_epoll_(ctl|wait_interruptible)",
    "rte_eth_(allmulticast_enable|buffer_split_get_supported_hdr_ptypes|call_rx_callbacks|call_tx_callbacks|dev_adjust_nb_rx_tx_desc|dev_close|dev_configure|dev_get_mtu|dev_get_name_by_port|dev_get_port_by_name|dev_info_get|dev_is_removed|dev_set_mtu|dev_rss_(hash_conf_get|reta_query)|dev_rx_intr_(ctl_q|ctl_q_get_fd|disable|enable)|dev_start|dev_stop|find_next|link_get_nowait|macaddr_get|promiscuous_enable|rx_queue_setup|stats_get|stats_reset|tx_done_cleanup|tx_prepare|tx_queue_setup|xstats_get|xstats_get_names|xstats_reset)",
    "rte_extmem_(register|unregister)|rte_eth_from_rings",
    "rte_(ipv4|ipv6)_phdr_cksum",
    "rte_(log_cur_msg_loglevel|openlog_stream|strerror|version)",
    "rte_mbuf_(best_mempool_ops|ext_refcnt_set|iova_set|sanity_check)",
    "rte_ring_(count|create|dequeue_burst|enqueue_burst|free)|rte_mempool_(avail_count|create_empty|free|obj_iter|op_calc_mem_size_default|populate_iova|put_bulk|set_ops_byname)|rte_memzone_reserve_aligned",
    "rte_pktmbuf_(alloc|alloc_bulk|attach_extbuf|free|free_bulk|init|linearize|pool_create|pool_create_extbuf|pool_init)|rte_(get_next_lcore|lcore_id|lcore_to_cpu_id|socket_id|thread_register|thread_unregister)",
];

const TYPES: [&str; 6] = [
    "rte_eth_(conf|dev_info|link|rxconf|stats|txconf|xstat|xstat_name)",
    "rte_iova_mode",
    "rte_mbuf",
    "rte_mbuf_ext_shared_info",
    "rte_mempool",
    "rte_pktmbuf_(extmem|pool_private)",
];

const CONSTANTS: [&str; 11] = [
    "RTE_CACHE_LINE_SIZE",
    "RTE_ETHER_(HDR_LEN|CRC_LEN|MAX_LEN|MTU)",
    "RTE_ETH_(LINK|MQ|NAME|QUEUE|RSS|RX_OFFLOAD|TX_OFFLOAD|XSTATS)_.*|RTE_ETH_RETA_GROUP_SIZE",
    "RTE_INTR_EVENT_(ADD|DEL)",
    "RTE_LOG_(EMERG|ALERT|CRIT|ERR|WARNING|NOTICE|INFO|DEBUG)",
    "RTE_MAX_(ETHPORTS|LCORE)",
    "RTE_MBUF_(DEFAULT|F|MAX|PRIV)_.*|RING_F_(SC_DEQ|SP_ENQ)",
    "RTE_MEMPOOL_(CACHE_MAX_SIZE|F_NO_IOVA_CONTIG|NAMESIZE)|RTE_PKTMBUF_HEADROOM",
    "RTE_PTYPE_L2_ETHER|RTE_PTYPE_L3_IPV4|RTE_PTYPE_L4_TCP",
    "LCORE_ID_ANY|SOCKET_ID_ANY",
    "rte_eth_fp_ops",
];

/// Structures that are both packed and aligned, which Rust cannot express.
const OPAQUE: [&str; 3] = ["rte_arp_.*", "rte_gtp_.*", "rte_l2tpv2_.*"];

/// Names the folder with libdpdk.pc of the DPDK that `cargo xtask dpdk` builds; cargo's configuration sets it.
const TRIMMED: &str = "TRIMMED_DPDK";
const PKG_CONFIG_PATH: &str = "PKG_CONFIG_PATH";

fn main() {
    println!("cargo::rerun-if-changed=wrapper.h");
    println!("cargo::rerun-if-env-changed={PKG_CONFIG_PATH}");
    let link_statically = env::var_os("CARGO_FEATURE_STATIC").is_some();
    if link_statically {
        prefer_trimmed();
    }
    let library = find_dpdk(link_statically);
    let cflags = cflags();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts"));
    bind(&cflags, &out);
    compile_inlines(&cflags, &out);
    if link_statically {
        link_archives();
    } else {
        link_shared(&library);
    }
}

/// Has pkg-config look for the trimmed DPDK, behind what the user's own path names and before the system's.
fn prefer_trimmed() {
    println!("cargo::rerun-if-env-changed={TRIMMED}");
    let Some(trimmed) = env::var_os(TRIMMED).map(PathBuf::from) else { return };
    let file = trimmed.join("libdpdk.pc");
    println!("cargo::rerun-if-changed={}", file.display());
    if !file.exists() {
        return;
    }
    let user = env::var_os(PKG_CONFIG_PATH).unwrap_or_default();
    let folders = env::split_paths(&user).filter(|folder| !folder.as_os_str().is_empty()).chain([trimmed]);
    let path = env::join_paths(folders).expect("folders came from a path, or have no colon in their names");
    // SAFETY: this process has one thread.
    unsafe { env::set_var(PKG_CONFIG_PATH, path) };
}

fn find_dpdk(link_statically: bool) -> pkg_config::Library {
    let found = pkg_config::Config::new()
        .cargo_metadata(false)
        .statik(link_statically)
        .range_version(DPDK_VERSION.."23")
        .probe("libdpdk");
    match found {
        Ok(library) => library,
        Err(reason) => fail(&format!(
            "libdpdk {DPDK_VERSION} was not found: {reason}\n\
             Run `cargo xtask setup` (Debian 12: apt-get install libdpdk-dev dpdk pkg-config), or point \
             PKG_CONFIG_PATH at the folder with libdpdk.pc"
        )),
    }
}

/// DPDK's compiler flags: its inlines need the instruction set (SSSE3) and the configuration header.
fn cflags() -> Vec<String> {
    let mut flags = pkg_config_words(&["--cflags"]);
    flags.push("-DALLOW_EXPERIMENTAL_API".to_owned());
    flags
}

fn bind(cflags: &[String], out: &Path) {
    require_libclang();
    let mut builder = bindgen::Builder::default()
        .header("wrapper.h")
        .clang_args(cflags)
        .wrap_static_fns(true)
        .wrap_static_fns_path(out.join("inlines"))
        .clang_macro_fallback()
        .clang_macro_fallback_build_dir(out)
        .derive_default(true)
        .generate_comments(false)
        .parse_callbacks(Box::new(bindgen::CargoCallbacks::new()));
    for functions in FUNCTIONS {
        builder = builder.allowlist_function(functions);
    }
    for types in TYPES {
        builder = builder.allowlist_type(types);
    }
    for constants in CONSTANTS {
        builder = builder.allowlist_var(constants);
    }
    for opaque in OPAQUE {
        builder = builder.opaque_type(opaque);
    }
    let bindings = match builder.generate() {
        Ok(bindings) => bindings,
        Err(reason) => fail(&format!("bindgen could not read DPDK's headers: {reason}")),
    };
    bindings.write_to_file(out.join("bindings.rs")).expect("cargo's OUT_DIR is writable");
}

/// bindgen panics without libclang, far from the remedy: look first.
fn require_libclang() {
    if let Err(reason) = clang_sys::load() {
        fail(&format!(
            "libclang was not found: {reason}\n\
             Run `cargo xtask setup` (Debian 12: apt-get install libclang-dev), or set LIBCLANG_PATH to the \
             folder with libclang.so"
        ));
    }
}

fn compile_inlines(cflags: &[String], out: &Path) {
    let manifest =
        env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR for build scripts");
    let mut build = cc::Build::new();
    build.file(out.join("inlines.c")).include(manifest).warnings(false).opt_level(3);
    for flag in cflags {
        build.flag(flag);
    }
    build.compile("dpdk_inlines");
}

fn link_shared(library: &pkg_config::Library) {
    for path in &library.link_paths {
        println!("cargo::rustc-link-search=native={}", path.display());
    }
    for name in &library.libs {
        println!("cargo::rustc-link-lib=dylib={name}");
    }
    println!("cargo::rustc-link-lib=dylib={CALLED_DRIVER}");
}

/// Drivers register themselves in constructors that nothing refers to, so each archive is taken whole.
fn link_archives() {
    let mut shared = Vec::new();
    for word in pkg_config_words(&["--static", "--libs", "libdpdk"]) {
        if let Some(path) = word.strip_prefix("-L") {
            println!("cargo::rustc-link-search=native={path}");
        } else if let Some(name) = word.strip_prefix("-l:lib").and_then(|file| file.strip_suffix(".a")) {
            println!("cargo::rustc-link-lib=static:+whole-archive,-bundle={name}");
        } else if let Some(name) = word.strip_prefix("-l") {
            let repeat = name.starts_with("rte_") || shared.iter().any(|other| other == name);
            if !repeat && !UNUSED_LIBRARIES.contains(&name) {
                shared.push(name.to_owned());
            }
        }
    }
    for name in shared {
        println!("cargo::rustc-link-lib=dylib={name}");
    }
    for path in pkg_config_words(&["--variable=libdir", "libdpdk"]) {
        println!("cargo::rustc-link-search=native={path}");
    }
}

fn pkg_config_words(arguments: &[&str]) -> Vec<String> {
    let program = env::var_os("PKG_CONFIG").unwrap_or_else(|| "pkg-config".into());
    let arguments = arguments.iter().copied().chain((!arguments.contains(&"libdpdk")).then_some("libdpdk"));
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).split_whitespace().map(str::to_owned).collect()
        }
        Ok(output) => fail(&format!("pkg-config libdpdk: {}", String::from_utf8_lossy(&output.stderr))),
        Err(reason) => fail(&format!("pkg-config cannot be run: {reason}\nRun `cargo xtask setup`")),
    }
}

fn fail(message: &str) -> ! {
    for line in message.lines() {
        println!("cargo::error={line}");
    }
    exit(1)
}
