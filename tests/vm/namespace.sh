#!/bin/bash
# The first process of the suite's own namespaces (network, mount, pid): a libvirtd that
# shares neither sockets, state, bridges nor firewall rules with a libvirtd of the host.
# When it ends, the kernel ends whatever was started here.
#
#   namespace.sh STATE_FOLDER
set -euo pipefail

state=${1:?}

mount --make-rprivate /
mkdir -p "$state"/{lib,cache,log}
# What a previous run left of these describes processes that no longer exist.
rm -rf "${state:?}"/{etc,run} "$state"/lib/images/iscsi_ipsec_{initiator,target}*
mkdir -p "$state"/{etc,run}
mkdir -p /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /run/libvirt /run/dbus
mount --bind "$state/etc" /etc/libvirt
mount --bind "$state/lib" /var/lib/libvirt
mount --bind "$state/cache" /var/cache/libvirt
mount --bind "$state/log" /var/log/libvirt
mount --bind "$state/run" /run/libvirt
# No bus: systemd-machined, firewalld and polkit belong to the host.
mount -t tmpfs none /run/dbus

mkdir -p /etc/libvirt/{qemu,storage,nwfilter} /var/lib/libvirt/{images,qemu,boot,dnsmasq}
cat >/etc/libvirt/qemu.conf <<END
user = "root"
group = "root"
dynamic_ownership = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
END
cat >/etc/libvirt/libvirtd.conf <<END
auth_unix_ro = "none"
auth_unix_rw = "none"
END
touch /etc/libvirt/virtlogd.conf

ip link set lo up
mkdir -p /var/log/libvirt
virtlogd >/var/log/libvirt/virtlogd.out 2>&1 &
libvirtd >/var/log/libvirt/libvirtd.out 2>&1 &
daemon=$!
# Either daemon dying means that nothing works any more.
wait -n
echo "namespace.sh: a daemon ended (libvirtd was $daemon); see $state/log" >&2
exit 1
