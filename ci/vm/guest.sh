# What the scenarios, and a person at the prompt, ask of the guest.

NIC=0000:00:02.0

# 2 MiB pages for DPDK's own tables and headers; payload never lies in them.
hugepages() {
    echo "${1:-192}" >/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages
    mkdir -p /dev/hugepages
    grep -q ' /dev/hugepages ' /proc/mounts || mount -t hugetlbfs none /dev/hugepages
}

# /dev/dax0.0 over the whole NVDIMM. The mode is written into the NVDIMM: at the next boot it is there at once.
devdax() {
    [ -e /dev/dax0.0 ] || ndctl create-namespace -f -e namespace0.0 --mode=devdax --map=mem
}

# An ext4 file system on the NVDIMM at /mnt, whose files are mapped without the page cache.
fsdax() {
    mount_ext4 -o dax=always 2>/dev/null && return
    ndctl create-namespace -f -e namespace0.0 --mode=fsdax --map=mem && mount_ext4 -o dax=always
}

# The same, but files have their pages in the page cache.
cached_fs() {
    ndctl create-namespace -f -e namespace0.0 --mode=fsdax --map=mem && mount_ext4 -o dax=never
}

# A file system on a virtio-pmem device, as a cloud's guest has it.
virtio_fs() {
    mount_ext4 -o dax=always
}

# Mounts /dev/pmem0 at /mnt; a device without a file system gets one first.
mount_ext4() {
    mount -t ext4 "$@" /dev/pmem0 /mnt && return
    mkfs.ext4 -q -F -b 4096 /dev/pmem0 && mount -t ext4 "$@" /dev/pmem0 /mnt
}

# background COMMAND: a server in the background; its output is in /tmp/server.out, its exit code in /tmp/server.status.
background() {
    rm -f /tmp/server.status
    {
        "$@" >/tmp/server.out 2>&1 &
        echo $! >/tmp/server.pid
        wait $!
        echo $? >/tmp/server.status
    } >/dev/null 2>&1 &
}

# serve PM [ARGUMENTS]: pmlog in the background on the NIC.
serve() {
    pm=$1
    shift
    background pmlog serve --pm "$pm" --dev "$NIC" --ip 10.0.0.2/24 "$@"
}

# serve_kernel PM [ARGUMENTS]: pmlog in the background on the kernel's TCP, over the kernel's driver of the NIC.
serve_kernel() {
    pm=$1
    shift
    kernel_address
    background pmlog serve --pm "$pm" --transport kernel --listen 10.0.0.2:80 "$@"
}

# serve_bench MODE PM: a server of pmbench's in the background, on the kernel's TCP; what it is to be told goes to /tmp/server.in.
serve_bench() {
    kernel_address
    rm -f /tmp/server.in
    mkfifo /tmp/server.in
    # Open for writing too, the pipe does not end with whoever writes into it.
    background sh -c 'exec pmbench serve --mode "$0" --pm "$1" --listen 10.0.0.2:80 <>/tmp/server.in' "$1" "$2"
}

# The kernel's driver has the NIC, and the kernel its address.
kernel_address() {
    ip address add 10.0.0.2/24 dev eth0
    ip link set eth0 up
}

# serve_socket PM [ARGUMENTS]: as serve, but the kernel's driver keeps the NIC, and DPDK reads its packets from a socket.
serve_socket() {
    # The kernel would join received segments, to frames longer than the socket's ring has room for.
    ethtool -K eth0 gro off lro off 2>/dev/null
    ip link set eth0 up promisc on
    NIC=net_af_packet0,iface=eth0 serve "$@"
}

# cpu_ticks: the CPU time that the server has taken so far, in hundredths of a second.
cpu_ticks() {
    awk '{ print $14 + $15 }' "/proc/$(cat /tmp/server.pid)/stat"
}

# vfio_interrupts: how many interrupts have come from devices that are with vfio, on both CPUs.
vfio_interrupts() {
    awk '/vfio/ { sum += $2 + $3 } END { print sum + 0 }' /proc/interrupts
}

# stop: ends the server as Ctrl-C does and gives back its exit code.
stop() {
    kill -INT "$(cat /tmp/server.pid)"
    for _ in $(seq 100); do
        [ -e /tmp/server.status ] && return "$(cat /tmp/server.status)"
        sleep 0.1
    done
    echo "the server did not end within 10 s"
    return 124
}

# How many DMA accesses the IOMMU has refused since boot. QEMU's vmxnet3 reads from address 0 before its driver has
# said where it lies; that is not ours.
dma_faults() {
    dmesg | grep 'DMAR:.*fault addr' | grep -vc 'DMA Read.*fault addr 0x0 '
}
