#!/bin/bash
# Makes a machine of the suite out of a Debian box: packages, if the box lacks them,
# and the data network on eth1.  Runs as root in the machine.
set -euo pipefail

name=$1 ip=$2 ip6=$3 second_ip=$4

# as in box.py: libraries whose names differ from release to release
# shellcheck source=/dev/null
case $(. /etc/os-release && echo "$VERSION_CODENAME") in
    bookworm)
        tpm_libraries=(libtss2-esys-3.0.2-0 libtss2-rc0)
        curl=libcurl3-nss ldap=libldap-2.5-0 suffix=
        ;;
    *)
        tpm_libraries=(libtss2-esys-3.0.2-0t64 libtss2-rc0t64)
        curl=libcurl3t64-gnutls ldap=libldap2 suffix=t64
        ;;
esac

packages=(
    charon-systemd strongswan-swanctl libcharon-extra-plugins libstrongswan-extra-plugins
    libstrongswan-standard-plugins open-iscsi tgt fio e2fsprogs nftables tcpdump
    iproute2 netbase python3 python3-systemd python3-nftables swtpm "${tpm_libraries[@]}"
)
if ! dpkg-query -W "${packages[@]}" >/dev/null 2>&1; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q update
    apt-get -q install -y --no-install-recommends "${packages[@]}"
    systemctl disable --now tgt
fi

# Beside strongSwan, whose packages it conflicts with; box.py says more.
libreswan_needs=(
    libnss3-tools libaudit1 libcap-ng0 libcrypt1 "$curl" "libevent-core-2.1-7$suffix"
    "libevent-pthreads-2.1-7$suffix" "$ldap" "libldns3$suffix" libnspr4 libnss3 libpam0g libselinux1
    libsystemd0 libunbound8
)
if ! [ -x /usr/libexec/ipsec/pluto ]; then
    apt-get -q install -y --no-install-recommends "${libreswan_needs[@]}"
    (
        cd "$(mktemp -d)"
        apt-get -q download libreswan
        dpkg-deb --fsys-tarfile libreswan_*.deb | tar -x --keep-directory-symlink -C /
    )
    ipsec checknss
    systemctl daemon-reload
fi

if systemctl -q is-active systemd-networkd; then
    {
        printf '[Match]\nName=eth1\n[Network]\nIPv6AcceptRA=no\n'
        for address in "$ip/24" ${second_ip:+"$second_ip/24"} "$ip6/64"; do
            printf '[Address]\nAddress=%s\nDuplicateAddressDetection=none\n' "$address"
        done
    } >/etc/systemd/network/20-data.network
    networkctl reload
    # Configured by link, not by the reload: the latter leaves a link alone that had no file.
    networkctl reconfigure eth1
else
    {
        printf 'auto eth1\niface eth1 inet static\n    address %s/24\n' "$ip"
        for address in ${second_ip:+"$second_ip/24"}; do
            printf '    up ip address add %s dev eth1\n' "$address"
        done
        printf 'iface eth1 inet6 static\n    address %s/64\n    dad-attempts 0\n' "$ip6"
    } >/etc/network/interfaces.d/data
    ifup eth1
fi
for _ in {1..150}; do
    if ip -6 address show dev eth1 scope global | grep -q "$ip6"; then
        break
    fi
    sleep 0.2
done
ip -brief address show dev eth1

echo "InitiatorName=iqn.2026-01.test.vm:$name" >/etc/iscsi/initiatorname.iscsi
chmod 600 /etc/iscsi/initiatorname.iscsi
