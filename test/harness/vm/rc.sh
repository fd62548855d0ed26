#!/bin/sh
# Brings up a virtual machine for a test: what its agent, udev, containerd and berthd need, and nothing else.
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=0755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
hostname guest
/lib/systemd/systemd-udevd --daemon
udevadm trigger --action=add
# The network as QEMU's user mode has it: this machine is .15, the host .2.
modprobe virtio_net
ip link set lo up
udevadm settle
for link in /sys/class/net/e*; do
	ip link set "${link##*/}" up
	ip addr add 10.0.2.15/24 dev "${link##*/}"
	ip route add default via 10.0.2.2
done
# The programs under test are on the disk that is called so.
for controller in /sys/class/nvme/nvme*; do
	read -r serial < "$controller/serial"
	[ "$serial" = programs ] && mount -o ro "/dev/${controller##*/}n1" /opt/berth
done
