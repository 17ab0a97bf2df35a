"""An NFS server for the stock `shared` driver, and its clients.

The server is nfs-ganesha, on the front-end. Where the kernel has an NFS client, hosts mount the two datastores, and
the driver is measured as it is. Elsewhere a `cp` of ours comes first in the PATH of the hosts' logins: for two paths
in the shared datastores it runs libnfs' nfs-cp, for all others the real cp. The driver's script is the real one
either way; but that client is not the kernel's, so its figures are not compared with others.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Sequence

from bench.testbed import Lab, LabError, processes
from bench.testbed.node import HOME

PROGRAMS = {"ganesha.nfsd": "nfs-ganesha nfs-ganesha-vfs", "rpcbind": "rpcbind", "nfs-cp": "libnfs-utils"}
_PORT, _MOUNT_PORT = 2049, 20048
_OPTIONS = f"version=3&nfsport={_PORT}&mountport={_MOUNT_PORT}"
_WAIT = 30.0  # seconds for the server to listen

# The user-space client speaks version 3 (its version 4 fails to read files of some MiB), the kernel's version 4.
_CONFIG = """\
NFS_Core_Param {{
    Protocols = 3, 4; NFS_Port = {port}; MNT_Port = {mount_port}; Enable_UDP = false; Enable_NLM = false;
    Enable_RQUOTA = false;
}}
NFSv4 {{ Graceless = true; RecoveryBackend = fs; RecoveryRoot = "{state}"; Minor_Versions = 0, 1, 2; }}
EXPORT {{
    Export_Id = 1; Path = "{path}"; Pseudo = "/ds"; Protocols = 3, 4; Transports = TCP;
    Access_Type = RW; Squash = No_Root_Squash; SecType = sys; FSAL {{ Name = VFS; }}
}}
"""

# $1 and $2 are the only words that the stock driver gives to cp here.
_CP = """\
#!/bin/sh
if [ $# -eq 2 ]; then
    case $1:$2 in
        {images}/*:{systems}/*)
            exec nfs-cp "nfs://{address}$1?{options}" "nfs://{address}$2?{options}"
            ;;
    esac
fi
exec /bin/cp "$@"
"""


def kernel_client() -> bool:
    """Whether the kernel can mount NFS."""
    return any(line.split()[-1] == "nfs4" for line in Path("/proc/filesystems").read_text().splitlines())


def missing() -> Sequence[str]:
    """What is not installed: `program (Debian packages)`."""
    return [f"{name} ({package})" for name, package in PROGRAMS.items() if shutil.which(name) is None]


def start(lab: Lab, stores: tuple[int, int], kernel: bool) -> None:
    """Start the server, and give every host its client. LabError if the server does not come up."""
    directory = lab.dir / "nodes/fe/nfs"
    directory.mkdir()
    config = directory / "ganesha.conf"
    config.write_text(_CONFIG.format(port=_PORT, mount_port=_MOUNT_PORT, state=directory, path=lab.datastores))
    log = directory / "log"
    lab.fe.run(["rpcbind"], user="root", check=True)  # version 3 does not start without it
    lab.fe.run(
        ["ganesha.nfsd", "-f", config, "-L", log, "-p", directory / "pid", "-N", "NIV_EVENT"], user="root", check=True
    )
    try:
        processes.wait_for(lambda: _listens(lab), _WAIT, "the NFS server")
    except LabError as error:
        said = log.read_text(errors="replace")[-800:] if log.exists() else ""
        raise LabError(f"{error} Its log ends: {said}") from None
    for name, node in lab.hosts.items():
        if kernel:
            for store in stores:
                where = f"{lab.datastores}/{store}"
                node.run(["mkdir", "-p", where], user="root", check=True)
                source = f"{lab.fe.address}:/ds/{store}"
                node.run(["mount", "-t", "nfs4", source, where], user="root", check=True)
        else:
            _put_cp(lab, name, stores)


def _listens(lab: Lab) -> bool:
    done = lab.fe.run(["ss", "-Hltn", f"sport = :{_PORT}"])
    return bool(done.stdout.strip())


def _put_cp(lab: Lab, host: str, stores: tuple[int, int]) -> None:
    node = lab.hosts[host]
    root = shlex.quote(str(lab.datastores))
    images, systems = (f"{root}/{store}" for store in stores)
    text = _CP.format(images=images, systems=systems, address=lab.fe.address, options=_OPTIONS)
    programs = node.files / "tmp/bench-nfs"
    programs.mkdir()
    (programs / "cp").write_text(text)
    (programs / "cp").chmod(0o755)
    # bash reads this for the commands of a login too, if sshd has started it.
    profile = node.path(f"{HOME}/.bashrc")
    profile.write_text("PATH=/var/tmp/bench-nfs:$PATH\n")
    shutil.chown(profile, 9869, 9869)
