#!/bin/sh
# The first process of a guest: makes the system ready, runs /vm/command, and hands over what it printed, the files that
# it left in /out and its exit code, each by a virtio-serial port. What it says by itself, as the kernel, goes to the
# console. /vm/settings has what `cargo xtask vm` was told.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin HOME=/root TERM=dumb
cd /

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /out
mount -t devpts devpts /dev/pts
for at in /dev/shm /run /tmp; do mount -t tmpfs tmpfs $at; done
chmod 755 /
chmod 1777 /tmp /dev/shm
ln -sf /proc/self/fd /dev/fd
ln -sf fd/0 /dev/stdin
ln -sf fd/1 /dev/stdout
ln -sf fd/2 /dev/stderr
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t securityfs securityfs /sys/kernel/security 2>/dev/null
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null

. /vm/settings

die() {
    echo "vm: $1"
    poweroff -f
}

# Modules on some kernels, and there is no udev to load them.
modprobe -q virtio_pci
modprobe -q virtio_console
port() {
    tries=0
    while [ $tries -lt 250 ]; do
        for candidate in /sys/class/virtio-ports/*; do
            if [ "$(cat "$candidate/name" 2>/dev/null)" = "$1" ]; then
                echo "/dev/${candidate##*/}"
                return
            fi
        done
        usleep 20000
        tries=$((tries + 1))
    done
}
output=$(port output)
result=$(port result)
[ -n "$output" ] && [ -n "$result" ] || die "there is no port for the output"

echo 1 >/proc/sys/net/core/bpf_jit_enable
ip link set lo up
hostname guest

if [ "$VM_CARDS" -gt 0 ]; then
    # There is no udev to load drivers of devices.
    for alias in /sys/bus/pci/devices/*/modalias /sys/bus/virtio/devices/*/modalias; do
        [ -e "$alias" ] && modprobe -q "$(cat "$alias")"
    done
    tries=0
    while [ "$(ls -d /sys/class/net/eth* 2>/dev/null | wc -l)" -lt "$VM_CARDS" ] && [ $tries -lt 250 ]; do
        usleep 20000
        tries=$((tries + 1))
    done
    [ $tries -lt 250 ] || echo "vm: not all of $VM_CARDS cards are there" | tee "$output"
fi
while IFS='=' read -r path value; do
    echo "$value" >"/proc/sys/$path" || die "cannot set $path to $value"
done </vm/sysctl

# A port can be open but once, while /dev/stdout and the like are opened again: the command gets a pipe.
mkfifo /run/output
cat /run/output >"$output" &
reader=$!
cd /job
sh /vm/command >/run/output 2>&1 </dev/null
code=$?
# What still has the pipe open is left behind, and what it prints from now on is of no interest.
tries=0
while kill -0 $reader 2>/dev/null && [ $tries -lt 25 ]; do
    usleep 20000
    tries=$((tries + 1))
done

if [ -n "$(ls -A /out)" ]; then
    tar -C /out -cf "$(port files)" . || die "cannot hand over /out"
fi
echo "exit $code" >"$result"
poweroff -f
