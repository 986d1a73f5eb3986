//! One virtual machine: how QEMU is started, and how commands get into the guest.
//!
//! ci/vm/README.md explains each flag used here.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::image::Image;

/// The host's end of the wire to the guest's NIC.
pub const TAP: &str = "paste-vm";

/// The guest's NIC on its PCI bus, as [`Machine::command`] places it.
pub const NIC: &str = "0000:00:02.0";

/// A NIC that QEMU emulates, and that DPDK has a driver for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nic {
    /// Intel 82574, a PCI-Express device as a real one is.
    E1000e,
    /// Virtio behind the virtual IOMMU, and with modern registers only: legacy ones cannot be behind it.
    Virtio,
    /// The same with two queues, over which it spreads TCP's connections by a hash of addresses and ports (RSS).
    VirtioTwoQueues,
    /// VMware's paravirtual NIC.
    Vmxnet3,
}

impl Nic {
    fn device(self) -> &'static str {
        match self {
            Self::E1000e => "e1000e",
            Self::Virtio => "virtio-net-pci,disable-legacy=on,iommu_platform=on,ats=on",
            // A vector for each of four rings, for the control ring, and for changes of configuration.
            Self::VirtioTwoQueues => {
                "virtio-net-pci,disable-legacy=on,iommu_platform=on,ats=on,mq=on,rss=on,vectors=6"
            }
            Self::Vmxnet3 => "vmxnet3",
        }
    }

    /// What a TAP interface must be made with, and what QEMU must be told of it, for this NIC to be at its other end.
    fn wire(self) -> (&'static [&'static str], &'static str) {
        match self {
            Self::VirtioTwoQueues => (&["multi_queue"], ",vhost=off,queues=2"),
            _ => (&[], ""),
        }
    }

    /// The host's end of the wire: a new TAP interface with the kernel's address on it.
    fn connect(self) -> Result<()> {
        // The last machine's; there is none before the first.
        let _ = lab::run("ip", ["link", "delete", TAP]);
        let add = ["tuntap", "add", "dev", TAP, "mode", "tap"];
        lab::run("ip", add.iter().chain(self.wire().0))?;
        lab::run("ip", ["address", "add", &format!("{}/24", lab::wire::KERNEL_V4), "dev", TAP])?;
        lab::run("ip", ["link", "set", TAP, "up"])?;
        Ok(())
    }
}

/// How the guest sees the file that stands for its persistent memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// An NVDIMM; `true` promises that the processor's caches survive a power cut too (eADR).
    Nvdimm {
        /// What the platform says of its caches.
        caches_persist: bool,
    },
    /// A paravirtual device, flushed by asking the host.
    VirtioPmem,
}

/// A disk with a cache that a power cut empties.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The file behind it.
    pub file: PathBuf,
    /// What becomes of what the guest asks it for.
    pub kind: DiskKind,
}

/// What becomes of what the guest asks a disk for.
#[derive(Clone, Debug)]
pub enum DiskKind {
    /// All writes and flushes are noted in this file, in their order.
    Logged(PathBuf),
    /// Requests of one kind that touch a place in the file fail.
    Failing {
        /// `read`, `write` or `flush`, as QEMU calls them.
        requests: &'static str,
        /// The place; none for all.
        at: Option<u64>,
    },
    /// Nothing but what is asked.
    Plain,
}

impl Disk {
    /// The arguments that give a machine this disk, as /dev/vda.
    fn arguments(&self) -> Vec<String> {
        const SECTOR_BYTES: u64 = 512;
        let node = |name: &str, file: &Path| {
            // What the host's power cut would do is not asked.
            [
                "-blockdev".to_owned(),
                format!("driver=file,node-name={name},filename={},cache.no-flush=on", file.display()),
            ]
        };
        let mut arguments = Vec::from(node("image", &self.file));
        let top = match &self.kind {
            DiskKind::Plain => None,
            DiskKind::Logged(log) => {
                arguments.extend(node("log", log));
                let sizes = "log-sector-size=512,log-super-update-interval=1";
                Some(format!("driver=blklogwrites,file=image,log=log,{sizes}"))
            }
            DiskKind::Failing { requests, at } => {
                let place =
                    at.map_or(String::new(), |at| format!(",inject-error.0.sector={}", at / SECTOR_BYTES));
                let rule = format!(
                    "inject-error.0.event=none,inject-error.0.iotype={requests},inject-error.0.errno=5{place}"
                );
                Some(format!("driver=blkdebug,image=image,{rule}"))
            }
        };
        let drive = if top.is_some() { "top" } else { "image" };
        if let Some(top) = top {
            arguments.extend(["-blockdev".to_owned(), format!("{top},node-name=top")]);
        }
        let device = format!("virtio-blk-pci,drive={drive},write-cache=on,addr=04.0");
        arguments.extend(["-device".to_owned(), device]);
        arguments
    }
}

/// A machine to be started.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its network interface.
    pub nic: Nic,
    /// Its persistent memory.
    pub medium: Medium,
    /// Whether there is a virtual IOMMU between its devices and its memory.
    pub iommu: bool,
    /// The file behind its persistent memory.
    pub file: PathBuf,
    /// Its disk, where it has one.
    pub disk: Option<Disk>,
}

/// Size of the file behind the persistent memory.
pub const MEDIUM_BYTES: u64 = 512 << 20;

impl Machine {
    /// The command line, less what differs between a prompt and a scenario.
    fn command(&self, image: &Image, arguments: &str) -> Command {
        let persistence = match self.medium {
            Medium::Nvdimm { caches_persist: true } => ",nvdimm-persistence=cpu",
            _ => "",
        };
        // KVM remaps interrupts only where QEMU keeps that part of the interrupt controller.
        let accelerator = accelerator(image);
        let irqchip = if accelerator == "kvm" { ",kernel-irqchip=split" } else { "" };
        // setpriv has the kernel end QEMU whenever its parent ends, however that happens.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(["-accel", accelerator])
            .arg("-machine")
            .arg(format!("q35,nvdimm=on{irqchip}{persistence}"))
            .args(["-cpu", "max", "-smp", "2", "-m", "1G,slots=4,maxmem=8G"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        if self.iommu {
            qemu.args(["-device", "intel-iommu,intremap=on,caching-mode=on,device-iotlb=on,aw-bits=48"]);
        }
        qemu.arg("-object").arg(format!(
            "memory-backend-file,id=pm0,share=on,mem-path={},size={MEDIUM_BYTES},align=2M",
            self.file.display()
        ));
        qemu.args([
            "-device",
            match self.medium {
                Medium::Nvdimm { .. } => "nvdimm,memdev=pm0",
                Medium::VirtioPmem => "virtio-pmem-pci,memdev=pm0,addr=03.0",
            },
        ]);
        qemu.args(self.disk.iter().flat_map(Disk::arguments));
        qemu.arg("-netdev")
            .arg(format!("tap,id=n0,ifname={TAP},script=no,downscript=no,vnet_hdr=off{}", self.nic.wire().1));
        qemu.arg("-device").arg(format!("{},netdev=n0,addr=02.0,mac=52:54:00:00:00:02", self.nic.device()));
        let iommu = if self.iommu { "intel_iommu=on" } else { "intel_iommu=off" };
        qemu.arg("-kernel").arg(&image.vmlinux).arg("-initrd").arg(&image.initrd);
        qemu.arg("-append").arg(format!("console=ttyS0 panic=-1 quiet no_timer_check {iommu} {arguments}"));
        qemu
    }

    /// Boots the machine with its console on this terminal, until the person at it has had enough.
    ///
    /// # Errors
    /// QEMU did not start, or ended with a failure.
    pub fn shell(&self, image: &Image) -> Result<()> {
        self.nic.connect()?;
        let status = self.command(image, "paste.shell").args(["-serial", "mon:stdio"]).status()?;
        ensure!(status.success(), "QEMU ended with {status}");
        Ok(())
    }

    /// Boots the machine and waits until it takes commands. What its console and QEMU say goes to `log`.
    ///
    /// # Errors
    /// QEMU did not start, or the guest was not ready by `deadline`; the end of `log` is in the message.
    pub fn boot(&self, image: &Image, log: &Path, deadline: Instant) -> Result<Guest> {
        self.nic.connect()?;
        // A socket's name must be short, which the build folder's need not be.
        let sockets = tempfile::tempdir().context("cannot create a folder for QEMU's socket")?;
        let socket = sockets.path().join("control");
        let console = fs::File::options().create(true).append(true).open(log)?;
        let child = self
            .command(image, "")
            .arg("-chardev")
            .arg(format!("file,id=console,append=on,path={}", log.display()))
            .args(["-serial", "chardev:console"])
            .arg("-chardev")
            .arg(format!("socket,id=control,path={},server=on,wait=off", socket.display()))
            .args(["-serial", "chardev:control"])
            .stdin(Stdio::null())
            .stdout(console.try_clone()?)
            .stderr(console)
            .spawn()
            .context("cannot start QEMU through setpriv; install util-linux and qemu-system-x86")?;
        let mut qemu = Qemu { child };
        let control = loop {
            if let Ok(stream) = UnixStream::connect(&socket) {
                break stream;
            }
            if let Some(status) = qemu.child.try_wait()? {
                bail!("QEMU ended at once ({status}):\n{}", tail(log));
            }
            ensure!(Instant::now() < deadline, "QEMU opened no control socket:\n{}", tail(log));
            sleep(Duration::from_millis(20));
        };
        control.set_read_timeout(Some(Duration::from_millis(200)))?;
        let mut guest = Guest { qemu, control, unread: Vec::new(), log: log.to_owned(), deadline };
        guest.read_until("guest ready\n").context("the guest did not come up")?;
        Ok(guest)
    }
}

/// KVM where it boots this kernel, emulation elsewhere. The device may exist, make machines and even run their
/// first instructions, and still hang in an operating system: so it is tried, once.
fn accelerator(image: &Image) -> &'static str {
    static ACCELERATOR: OnceLock<&str> = OnceLock::new();
    ACCELERATOR.get_or_init(|| if kvm_boots(image) { "kvm" } else { "tcg" })
}

/// Boots the kernel alone, which under KVM says so within a second and then ends for want of an init.
fn kvm_boots(image: &Image) -> bool {
    if !Path::new("/dev/kvm").exists() {
        return false;
    }
    let probe = Command::new("timeout")
        .args(["--signal=KILL", "4", "qemu-system-x86_64", "-accel", "kvm", "-machine", "q35", "-cpu", "max"])
        .args(["-m", "256M", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-serial", "stdio", "-append", "console=ttyS0 panic=-1", "-kernel"])
        .arg(&image.vmlinux)
        .stdin(Stdio::null())
        .output();
    probe.is_ok_and(|probe| String::from_utf8_lossy(&probe.stdout).contains("Linux version"))
}

/// The QEMU process; it ends with this value.
struct Qemu {
    child: Child,
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A machine that has booted.
pub struct Guest {
    qemu: Qemu,
    control: UnixStream,
    unread: Vec<u8>,
    log: PathBuf,
    deadline: Instant,
}

/// What a command in the guest did.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its exit code.
    pub status: i32,
    /// What it printed, both streams.
    pub text: String,
}

impl Outcome {
    /// Whether the exit code is 0.
    pub fn succeeded(&self) -> bool {
        self.status == 0
    }
}

impl Guest {
    /// Carries out one line of shell in the guest.
    ///
    /// # Errors
    /// The guest is gone or past its deadline. A command that fails is no error here.
    pub fn run(&mut self, line: &str) -> Result<Outcome> {
        self.record(&format!("# {line}\n"));
        self.control.write_all(format!("{line}\n").as_bytes()).context("the guest takes no commands")?;
        let text = self.read_until("\n\u{1}status ").with_context(|| format!("in the guest: {line}"))?;
        let status = self.read_until("\n")?;
        self.record(&format!("{text}\n# status {status}\n"));
        Ok(Outcome { status: status.trim().parse().context("the guest gave no exit code")?, text })
    }

    /// As [`run`](Self::run), for a command that must succeed; gives what it printed.
    ///
    /// # Errors
    /// As there, and a failed command with what it printed.
    pub fn must(&mut self, line: &str) -> Result<String> {
        let outcome = self.run(line)?;
        ensure!(
            outcome.status == 0,
            "'{line}' in the guest ended with {}:\n{}",
            outcome.status,
            outcome.text
        );
        Ok(outcome.text)
    }

    /// Pulls the plug: SIGKILL to QEMU, at whatever instruction the guest is.
    ///
    /// # Errors
    /// The process could not be waited for.
    pub fn cut_power(mut self) -> Result<()> {
        self.qemu.child.kill().context("cannot kill QEMU")?;
        self.qemu.child.wait()?;
        Ok(())
    }

    /// Has the guest switch itself off.
    ///
    /// # Errors
    /// It did not do so by its deadline.
    pub fn power_off(mut self) -> Result<()> {
        self.control.write_all(b"sync; poweroff -f\n")?;
        while self.qemu.child.try_wait()?.is_none() {
            ensure!(
                Instant::now() < self.deadline,
                "the guest did not switch itself off:\n{}",
                tail(&self.log)
            );
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// When this machine must have ended.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Reads up to `mark`, which is taken out too.
    fn read_until(&mut self, mark: &str) -> Result<String> {
        let mut searched = 0;
        loop {
            let from = searched.min(self.unread.len());
            if let Some(at) = find(&self.unread[from..], mark.as_bytes()) {
                let rest = self.unread.split_off(from + at + mark.len());
                let mut text = std::mem::replace(&mut self.unread, rest);
                text.truncate(from + at);
                return Ok(String::from_utf8_lossy(&text).replace('\r', ""));
            }
            searched = self.unread.len().saturating_sub(mark.len());
            let mut piece = [0; 4096];
            match self.control.read(&mut piece) {
                Ok(0) => bail!("the guest went away:\n{}", tail(&self.log)),
                Ok(count) => self.unread.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            if Instant::now() >= self.deadline {
                let said = String::from_utf8_lossy(&self.unread).into_owned();
                bail!(
                    "the guest did not answer in time; it said:\n{said}\nand on its console:\n{}",
                    tail(&self.log)
                );
            }
        }
    }

    /// Keeps what passed over the control line beside the console's output.
    fn record(&self, text: &str) {
        if let Ok(mut log) = fs::File::options().append(true).open(&self.log) {
            let _ = log.write_all(text.as_bytes());
        }
    }
}

fn find(bytes: &[u8], mark: &[u8]) -> Option<usize> {
    bytes.windows(mark.len()).position(|window| window == mark)
}

/// The last lines of a log, for an error message.
fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
