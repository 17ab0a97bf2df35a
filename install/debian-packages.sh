#!/bin/sh
# Installs the Debian packages that tests, demo and lab need, if any is missing.  Not what the driver needs on a
# front-end or a host: that is python3 (with venv, on the front-end) and OpenSSH.
set -eu

packages="python3-venv openssh-client openssh-server iproute2 util-linux procps kmod xfsprogs btrfs-progs e2fsprogs
    qemu-utils xorriso genisoimage debootstrap shellcheck libxml2-utils rsync"

missing=""
for package in $packages; do
    if ! dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed'; then
        missing="$missing $package"
    fi
done
if [ -z "$missing" ]; then
    exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
    # Not fatal: what needs them is said, and left out, by whoever needs them.
    echo "not installed, and only root can:$missing" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet=2
# shellcheck disable=SC2086 # a list of words
apt-get install --quiet=2 --yes --no-install-recommends $missing >/dev/null
