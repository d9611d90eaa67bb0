#!/bin/sh
# Makes the root that the machines of these tests boot from: make-root.sh FOLDER [SUITE]
#
# It is a Debian with what an Ubuntu image on EC2 brings and labhost relies on: systemd, sshd, sudo, cloud-init and
# the login `ubuntu`. Made once; needs root, debootstrap and Debian's mirror.
set -eu
root=$1
suite=${2:-bookworm}
[ ! -e "$root/etc/labhost-image" ] || exit 0
rm -rf "$root.new" "$root"
mkdir -p "$(dirname "$root")"
log=$root.log

if ! debootstrap --variant=minbase \
    --include=systemd,systemd-sysv,libpam-systemd,dbus,openssh-server,iproute2,sudo,ca-certificates \
    "$suite" "$root.new" http://deb.debian.org/debian >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    exit 1
fi
# debootstrap does not resolve the virtual packages that cloud-init names.
in_root() { DEBIAN_FRONTEND=noninteractive chroot "$root.new" "$@" >>"$log" 2>&1 || { tail -n 20 "$log" >&2; exit 1; }; }
in_root apt-get install -q -y --no-install-recommends cloud-init
in_root apt-get clean
rm -rf "$root.new"/var/lib/apt/lists/*

# What differs between a package just installed and an image: no keys, no identity, no network of the builder's.
rm -f "$root.new"/etc/ssh/ssh_host_* "$root.new/etc/resolv.conf" "$root.new/var/lib/dbus/machine-id"
: >"$root.new/etc/machine-id"
cat >"$root.new/etc/cloud/cloud.cfg.d/90_image.cfg" <<CFG
datasource_list: [NoCloud, None]
network: {config: disabled}
locale: false
system_info:
  default_user:
    name: ubuntu
    lock_passwd: true
    groups: [adm, sudo]
    sudo: ["ALL=(ALL) NOPASSWD:ALL"]
    shell: /bin/bash
CFG
# The network that EC2 gives by DHCP is written into each machine's root by the tests.
ln -sf /lib/systemd/system/systemd-networkd.service "$root.new/etc/systemd/system/multi-user.target.wants/"
mkdir -p "$root.new/etc/systemd/system/network-online.target.wants"
ln -sf /lib/systemd/system/systemd-networkd-wait-online.service "$root.new/etc/systemd/system/network-online.target.wants/"
echo "$suite" >"$root.new/etc/labhost-image"
mv "$root.new" "$root"
