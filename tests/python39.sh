#!/bin/sh
# Runs the tests of core, agent, setup and remotes on Python 3.9, the oldest that hosts and front-ends may have, in a
# Debian 11 of its own.
#
#   tests/python39.sh [arguments of pytest]
#
# The Debian is made once and kept in ${FASTCOPY_CACHE:-/var/cache/fastcopy}/debian11-python39; it is made anew when what
# it consists of changes, or that directory is removed.  Needs root, debootstrap, unshare and a python3 with pip.
# Packages and wheels come from where this machine gets its own: the first Debian mirror that apt knows (or
# $FASTCOPY_MIRROR), and what pip is configured for.
set -eu

# pip takes the newest that has a wheel for Python 3.9: that is blake3 1.0.10 (1.0.11 has none), pytest 8.4.2 and
# hypothesis 6.141.1.  The second line is what these two need on 3.9 only: pip looks at the Python that runs it.
wheels="blake3 xxhash zstandard pytest hypothesis"
wheels="$wheels exceptiongroup tomli typing-extensions sortedcontainers attrs"
packages=python3,python3-venv,qemu-utils,openssh-client

fail() {
    echo "python39.sh: $1" >&2
    exit 1
}

if [ "$(id -u)" != 0 ]; then
    echo "left out: tests on Python 3.9, in a Debian of their own, because this user is not root"
    exit 0
fi
for tool in debootstrap unshare chroot python3 tar; do
    command -v "$tool" >/dev/null || fail "$tool is missing"
done

cache=${FASTCOPY_CACHE:-/var/cache/fastcopy}
debian=$cache/debian11-python39
checkout=$(cd "$(dirname "$0")/.." && pwd)

# The mounts are seen by this process and its children only, so they end with it, however it ends.
if [ "${FASTCOPY_UNSHARED:-}" != yes ]; then
    FASTCOPY_UNSHARED=yes exec unshare --mount --propagation private "$0" "$@"
fi

first_mirror() {
    # shellcheck disable=SC2016 # apt replaces this, not the shell
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m 1 '/debian/$' || true
}

make_debian() {
    mirror=${FASTCOPY_MIRROR:-$(first_mirror)}
    [ -n "$mirror" ] || fail "apt knows no Debian mirror; name one in FASTCOPY_MIRROR"
    rm -rf "$debian" "$debian.new"
    mkdir -p "$debian.new"
    echo "making Debian 11 in $debian from $mirror"
    debootstrap --variant=minbase --include="$packages" bullseye "$debian.new" "$mirror" >"$cache/debian11.log" \
        || fail "debootstrap failed; see $cache/debian11.log"
    # Wheels are fetched out here, where pip is configured for this machine's network, and installed in there.
    machine=$(uname -m)
    # shellcheck disable=SC2086 # a list
    python3 -m pip download --quiet --dest "$debian.new/wheels" --only-binary=:all: --implementation cp \
        --python-version 3.9 --platform "manylinux_2_28_$machine" --platform "manylinux_2_17_$machine" \
        --platform "manylinux2014_$machine" --platform any $wheels || fail "the wheels cannot be had"
    chroot "$debian.new" python3 -m venv /venv
    chroot "$debian.new" sh -c '/venv/bin/pip install --quiet --no-index --no-deps --disable-pip-version-check /wheels/*.whl'
    echo "$packages $wheels" >"$debian.new/made-with"
    mv "$debian.new" "$debian"
}

mkdir -p "$cache"
[ "$(cat "$debian/made-with" 2>/dev/null)" = "$packages $wheels" ] || make_debian

mount --bind "$debian" "$debian"  # or nothing in there would be on a file system that it can see
mount -t proc proc "$debian/proc"
mount --rbind /dev "$debian/dev"
rm -rf "$debian/tmp"  # on the disk: a tmpfs has no map of extents
mkdir -m 1777 "$debian/tmp"
rm -rf "$debian/checkout"
mkdir "$debian/checkout"
tar -C "$checkout" --exclude=./.git --exclude=./.venv --exclude=./build --exclude=__pycache__ -cf - . \
    | tar -C "$debian/checkout" -xf -
chroot "$debian" /venv/bin/python --version
exec chroot "$debian" /usr/bin/env -i PATH=/usr/bin:/bin:/usr/sbin:/sbin LC_ALL=C.UTF-8 HOME=/root \
    sh -c 'cd /checkout && exec /venv/bin/python -m pytest -q tests/unit/core tests/unit/agent tests/unit/setup tests/unit/remotes "$@"' pytest "$@"
