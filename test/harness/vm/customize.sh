#!/bin/sh
# customize TREE: the newest kernel for clouds, unpacked, and a list of its modules.
set -eu
tree=$1
flavour=linux-image-cloud-$(chroot "$tree" dpkg --print-architecture)
kernel=$(chroot "$tree" apt-cache depends "$flavour" | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p')
[ -n "$kernel" ] || { echo "$flavour names no kernel" >&2; exit 1; }
chroot "$tree" sh -c "cd /tmp && apt-get -qq download $kernel"
dpkg -x "$tree"/tmp/linux-image-*.deb "$tree/tmp/kernel"
mv "$tree/tmp/kernel/lib/modules" "$tree/usr/lib/modules"
mv "$tree"/tmp/kernel/boot/vmlinuz-* "$tree/boot/vmlinuz"
rm -rf "$tree/tmp/kernel" "$tree"/tmp/*.deb
chroot "$tree" depmod "$(ls "$tree/usr/lib/modules")"
