//! The guest: a kernel from Debian's package, and one archive that holds every program it runs.
//!
//! Nothing is installed on the host for it, and everything is kept below `target/vm`: the kernel under its version,
//! the archive under a key of all that went into it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Debian packages the guest is made from and runs with, besides those that building pmlog takes, and what uses each.
pub const PACKAGES: [(&str, &str); 9] = [
    ("busybox-static", "the virtual machine's shell"),
    ("cpio", "packs the virtual machine's programs"),
    ("daxctl", "sets device-DAX up in the virtual machine"),
    ("dpdk", "drivers for the virtual machine's network cards"),
    ("e2fsprogs", "makes file systems in the virtual machine"),
    ("kmod", "loads the virtual machine's drivers"),
    ("ndctl", "sets persistent memory up in the virtual machine"),
    ("qemu-system-x86", "the virtual machine"),
    ("xz-utils", "unpacks the virtual machine's kernel"),
];

/// Modules beyond those built into Debian's kernel; what they depend on comes along.
const MODULES: &[&str] = &[
    "crc32c_generic",
    "dax_pmem",
    "device_dax",
    "e1000e",
    "ext4",
    "kcm",
    "libcrc32c",
    "nd_pmem",
    "nfit",
    "sch_netem",
    "tun",
    "uio_pci_generic",
    "veth",
    "vfio-pci",
    "vfio_iommu_type1",
    "virtio_blk",
    "virtio_net",
    "virtio_pci",
    "virtio_pmem",
    "vmxnet3",
];

/// DPDK drivers that EAL finds at run time, and which no program therefore names as its own library.
const DRIVERS: &[&str] = &[
    "bus_pci",
    "bus_vdev",
    "mempool_ring",
    "net_af_packet",
    "net_e1000",
    "net_null",
    "net_virtio",
    "net_vmxnet3",
];

const TOOLS: &[&str] = &["/usr/bin/ndctl", "/usr/bin/daxctl", "/usr/sbin/ethtool", "/usr/sbin/mkfs.ext4"];

/// What QEMU boots.
#[derive(Clone, Debug)]
pub struct Image {
    /// The uncompressed kernel.
    pub vmlinux: PathBuf,
    /// The archive unpacked into the guest's memory at boot.
    pub initrd: PathBuf,
}

/// Builds what is missing of the guest below `cache`, with `programs` in its `/usr/bin` and `scripts` as its init.
///
/// # Errors
/// A package that is not there, or a step of the build that failed; the message names the command.
pub fn build(cache: &Path, scripts: &Path, programs: &[PathBuf]) -> Result<Image> {
    fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let kernel = Kernel::fetch(cache)?;
    let tree = Tree::collect(&kernel, scripts, programs)?;
    let (initrd, key_file) = (cache.join("initrd.img"), cache.join("initrd.key"));
    let key = tree.key()?;
    if !initrd.exists() || fs::read_to_string(&key_file).ok().as_ref() != Some(&key) {
        // Without its key an interrupted build is not taken for a finished one.
        let _ = fs::remove_file(&key_file);
        tree.archive(&cache.join("initrd"), &initrd)?;
        fs::write(&key_file, key)?;
    }
    Ok(Image { vmlinux: kernel.vmlinux, initrd })
}

/// Debian's kernel, unpacked.
struct Kernel {
    version: String,
    root: PathBuf,
    vmlinux: PathBuf,
}

impl Kernel {
    fn fetch(cache: &Path) -> Result<Self> {
        let package = current_kernel_package()?;
        let version = package.trim_start_matches("linux-image-").to_owned();
        let root = cache.join(&package);
        let vmlinux = root.join("vmlinux");
        if !vmlinux.exists() {
            let parts = cache.join("download");
            let _ = fs::remove_dir_all(&parts);
            fs::create_dir_all(&parts)?;
            output(Command::new("apt-get").args(["-q", "download", &package]).current_dir(&parts))?;
            let archive = fs::read_dir(&parts)?
                .filter_map(|entry| Some(entry.ok()?.path()))
                .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
                .with_context(|| format!("apt-get download {package} left no .deb file"))?;
            let _ = fs::remove_dir_all(&root);
            output(Command::new("dpkg").arg("-x").arg(&archive).arg(&root))?;
            output(Command::new("depmod").arg("-b").arg(&root).arg(&version))?;
            let image = fs::read(root.join(format!("boot/vmlinuz-{version}")))?;
            let kernel =
                unpack_kernel(&image).context("the kernel package holds no xz-compressed ELF kernel")?;
            // Renamed into place, since its existence says that all of the above is done.
            fs::write(parts.join("vmlinux"), kernel)?;
            fs::rename(parts.join("vmlinux"), &vmlinux)?;
            fs::remove_dir_all(&parts)?;
        }
        Ok(Self { version, root, vmlinux })
    }

    /// The files of `names` and of all they depend on, relative to the package's root.
    fn modules(&self, names: &[&str]) -> Result<BTreeSet<PathBuf>> {
        let folder = PathBuf::from("lib/modules").join(&self.version);
        let index = fs::read_to_string(self.root.join(&folder).join("modules.dep"))?;
        let mut files = BTreeSet::new();
        for name in names {
            let line = index.lines().find(|line| module_name(line) == name.replace('-', "_"));
            // modules.dep lists each module's dependencies to the end, so one line is enough.
            let line = line.with_context(|| format!("kernel {} has no module {name}", self.version))?;
            files
                .extend(line.split([':', ' ']).filter(|part| !part.is_empty()).map(|part| folder.join(part)));
        }
        files.extend(
            ["modules.dep", "modules.alias", "modules.symbols", "modules.builtin"]
                .map(|name| folder.join(name)),
        );
        Ok(files)
    }
}

/// The name of the module that a line of modules.dep is about, spelled with underscores.
fn module_name(line: &str) -> String {
    let path = line.split(':').next().unwrap_or_default();
    let file = path.rsplit('/').next().unwrap_or_default();
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

fn current_kernel_package() -> Result<String> {
    let depends = output(Command::new("apt-cache").args(["depends", "linux-image-amd64"]))?;
    let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: ")).map(str::to_owned);
    package.context("apt knows no linux-image-amd64; run 'apt-get update' as root and try again")
}

/// The ELF kernel inside a bzImage. Booted as it is, it saves the guest from decompressing itself, which is slow
/// where the processor is emulated.
fn unpack_kernel(image: &[u8]) -> Result<Vec<u8>> {
    const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];
    for (at, _) in image.windows(XZ.len()).enumerate().filter(|(_, window)| *window == XZ) {
        let mut xz = Command::new("xz")
            .args(["--decompress", "--stdout", "--single-stream"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start xz")?;
        let mut stdin = xz.stdin.take().context("xz has no standard input")?;
        let payload = image[at..].to_vec();
        // xz stops reading at the end of the stream; what it leaves unread is no error.
        let feeder = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &payload));
        let elf = xz.wait_with_output()?.stdout;
        let _ = feeder.join();
        if elf.starts_with(b"\x7fELF") {
            return Ok(elf);
        }
    }
    bail!("no xz stream in the image unpacks to an ELF file")
}

/// Files of the guest: where each comes from, and where it goes.
struct Tree {
    files: BTreeSet<(PathBuf, PathBuf)>,
    /// (name, what it points to)
    links: BTreeSet<(PathBuf, PathBuf)>,
}

impl Tree {
    fn collect(kernel: &Kernel, scripts: &Path, programs: &[PathBuf]) -> Result<Self> {
        let mut tree = Self { files: BTreeSet::new(), links: BTreeSet::new() };
        for (name, target) in
            [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")]
        {
            tree.links.insert((name.into(), target.into()));
        }
        tree.add("/bin/busybox".into(), "usr/bin/busybox".into());
        tree.links.insert(("usr/bin/sh".into(), "busybox".into()));
        tree.add(scripts.join("init"), "init".into());
        tree.add(scripts.join("guest.sh"), "etc/guest.sh".into());
        for file in kernel.modules(MODULES)? {
            tree.add(kernel.root.join(&file), Path::new("usr").join(file));
        }

        let mut binaries: Vec<PathBuf> = TOOLS.iter().map(PathBuf::from).collect();
        for program in &binaries {
            tree.add(program.clone(), program.strip_prefix("/")?.into());
        }
        for program in programs {
            let name =
                program.file_name().with_context(|| format!("{} has no file name", program.display()))?;
            tree.add(program.clone(), Path::new("usr/bin").join(name));
            binaries.push(program.clone());
        }
        let plugins = plugin_folder()?;
        for driver in DRIVERS {
            let name = format!("librte_{driver}.so");
            let file = plugins.join(&name);
            ensure!(file.exists(), "{} is missing; install Debian's package dpdk", file.display());
            tree.add_library(&file)?;
            binaries.push(file);
        }
        let mut libraries = libraries_of(&binaries)?;
        // Threads are cancelled through it; it is opened at run time and so in nobody's list.
        libraries.insert("/lib/x86_64-linux-gnu/libgcc_s.so.1".into());
        for library in libraries {
            tree.add_library(&library)?;
        }
        Ok(tree)
    }

    fn add(&mut self, from: PathBuf, to: PathBuf) {
        self.files.insert((from, to));
    }

    /// Adds a library once, under the name of the file behind all links, and a link for the name it is asked by:
    /// EAL opens every file in its folder, and a driver opened under two inodes registers itself twice and panics.
    fn add_library(&mut self, name: &Path) -> Result<()> {
        let file = name.canonicalize().with_context(|| format!("cannot find {}", name.display()))?;
        let folder = name.parent().context("a library without a folder")?.canonicalize()?;
        let asked = folder.join(name.file_name().context("a library without a name")?);
        if asked != file {
            self.links.insert((asked.strip_prefix("/")?.into(), file.clone()));
        }
        let to = file.strip_prefix("/")?.to_owned();
        self.add(file, to);
        Ok(())
    }

    /// Changes whenever anything in the archive does.
    fn key(&self) -> Result<String> {
        let mut key = String::new();
        for (from, to) in &self.files {
            let about = fs::metadata(from).with_context(|| {
                format!(
                    "{} is missing; 'cargo xtask vm' installs what it takes when run as root",
                    from.display()
                )
            })?;
            let (len, changed, part) = (about.len(), about.mtime(), about.mtime_nsec());
            writeln!(key, "{} {} {len} {changed}.{part}", from.display(), to.display())?;
        }
        for (name, target) in &self.links {
            writeln!(key, "{} -> {}", name.display(), target.display())?;
        }
        Ok(key)
    }

    fn archive(&self, fixture: &Path, archive: &Path) -> Result<()> {
        let _ = fs::remove_dir_all(fixture);
        for folder in ["usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc", "dev", "proc", "sys"] {
            fs::create_dir_all(fixture.join(folder))?;
        }
        for (name, target) in &self.links {
            let path = fixture.join(name);
            fs::create_dir_all(path.parent().unwrap_or(fixture))?;
            symlink(target, &path).with_context(|| format!("cannot link {}", path.display()))?;
        }
        for (from, to) in &self.files {
            let path = fixture.join(to);
            fs::create_dir_all(path.parent().unwrap_or(fixture))?;
            fs::copy(from, &path).with_context(|| format!("cannot copy {}", from.display()))?;
            let mode = fs::metadata(from)?.permissions().mode();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode | 0o600))?;
        }
        // Modules and programs in a file of 30 MB: packing it would cost more at boot than reading it does.
        let list = Command::new("find").arg(".").current_dir(fixture).stdout(Stdio::piped()).spawn()?;
        let status = Command::new("cpio")
            .args(["--create", "--format=newc", "--owner=0:0", "--quiet", "--file"])
            .arg(archive)
            .current_dir(fixture)
            .stdin(list.stdout.context("find has no standard output")?)
            .status()
            .context("cannot start cpio")?;
        ensure!(status.success(), "cpio failed to pack {}: {status}", fixture.display());
        fs::remove_dir_all(fixture)?;
        Ok(())
    }
}

/// Where Debian's EAL looks for drivers.
fn plugin_folder() -> Result<PathBuf> {
    let parent = Path::new("/usr/lib/x86_64-linux-gnu/dpdk");
    let folders = fs::read_dir(parent)
        .with_context(|| format!("{} is missing; install Debian's package dpdk", parent.display()))?;
    let mut folders: Vec<_> = folders.filter_map(|entry| Some(entry.ok()?.path())).collect();
    folders.sort();
    folders
        .into_iter()
        .rfind(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("pmds-")))
        .with_context(|| format!("no pmds-* in {}", parent.display()))
}

/// Every shared library that one of `binaries` needs, directly or not.
fn libraries_of(binaries: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    let mut libraries = BTreeSet::new();
    for binary in binaries {
        for line in output(Command::new("ldd").arg(binary))?.lines() {
            ensure!(!line.contains("not found"), "{} needs a library: {}", binary.display(), line.trim());
            libraries.extend(line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from));
        }
    }
    Ok(libraries)
}

/// What a command prints, or an error with what it complains of.
fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let result = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {shown}"))?;
    let complaint = String::from_utf8_lossy(&result.stderr);
    ensure!(result.status.success(), "{shown} failed ({}): {}", result.status, complaint.trim());
    Ok(String::from_utf8_lossy(&result.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_names_are_read_from_paths() {
        assert_eq!(module_name("kernel/drivers/vfio/pci/vfio-pci.ko: kernel/x.ko"), "vfio_pci");
        assert_eq!(module_name("kernel/fs/ext4/ext4.ko.xz:"), "ext4");
        assert_eq!(module_name(""), "");
    }

    #[test]
    fn an_image_without_a_kernel_is_refused() {
        assert!(unpack_kernel(b"\xfd7zXZ\0 but nothing that xz would take").is_err());
        assert!(unpack_kernel(&[]).is_err());
    }
}
