"""A self-contained OpenNebula front-end to install on, and an oned to ask: without the lab's hosts.

The tree is made by OpenNebula's own installer where FASTCOPY_OPENNEBULA names a checkout; otherwise it is a small one
of the same shape.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xmlrpc.server import SimpleXMLRPCRequestHandler, SimpleXMLRPCServer

from bench.testbed.install import public_python

ROOT = Path(__file__).resolve().parents[2]
CHECKOUT = os.environ.get("FASTCOPY_OPENNEBULA")
USER = "nobody"  # who oned runs as: on any machine, and not who owns the code
WAIT = 300  # seconds for one run of a script

ONED_CONF = """\
# A configuration of this project's tests, in the shape of OpenNebula's
PORT = 2633

TM_MAD = [
    EXECUTABLE = "one_tm",
    ARGUMENTS = "-t 15 -d dummy,shared,qcow2,ssh,local"
]

DATASTORE_MAD = [
    EXECUTABLE = "one_datastore",
    ARGUMENTS  = "-t 15 -d dummy,fs -s shared,ssh,local"
]

TM_MAD_CONF = [
    NAME = "shared", LN_TARGET = "NONE", CLONE_TARGET = "SYSTEM", SHARED = "YES",
    TM_MAD_SYSTEM = "ssh", LN_TARGET_SSH = "SYSTEM", CLONE_TARGET_SSH = "SYSTEM",
    DISK_TYPE_SSH = "FILE"
]

TM_MAD_CONF = [
    NAME = "qcow2", LN_TARGET = "NONE", CLONE_TARGET = "SYSTEM", SHARED = "YES"
]
"""


class FrontEnd:
    """The tree `one`, and what is done to it."""

    def __init__(self, top: Path, wheelhouse: Path) -> None:
        self.top, self.one, self.wheelhouse = top, top / "one", wheelhouse
        if CHECKOUT:
            argv = ["./install.sh", "-d", str(self.one)]
            # What a checkout lacks (programs that are built, downloads) it complains about, and goes on.
            subprocess.run(argv, cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=WAIT)
        else:
            for name in ("bin", "lib/mads", *(f"var/remotes/tm/{tm}" for tm in ("ssh", "shared", "qcow2"))):
                (self.one / name).mkdir(parents=True)
            (self.one / "etc/vmm_exec").mkdir(parents=True)
            (self.one / "etc/oned.conf").write_text(ONED_CONF)
            (self.one / "etc/vmm_exec/vmm_execrc").write_text('# list\nLIVE_DISK_SNAPSHOTS="kvm-qcow2 kvm-ssh"\n')
            (self.one / "var/remotes/tm/ssh/clone").write_text("#!/bin/sh\n")
        assert (self.one / "etc/oned.conf").is_file()
        owner = pwd.getpwnam(USER)
        for base, directories, files in os.walk(self.one / "var"):
            for path in [base, *(os.path.join(base, name) for name in directories + files)]:
                os.lchown(path, owner.pw_uid, owner.pw_gid)
        self.auth = top / "one_auth"
        self.auth.write_text("oneadmin:secret")

    @property
    def library(self) -> Path:
        return self.one / "lib/fastcopy"

    @property
    def entries(self) -> Path:
        return self.one / "var/remotes/tm/fastcopy"

    @property
    def oned_conf(self) -> Path:
        return self.one / "etc/oned.conf"

    @property
    def release(self) -> str:
        """The name of the current one."""
        return (self.library / "current").resolve().name

    def argv(self, *words: str, source: Path = ROOT) -> list[str]:
        """The installer's, where no network can be reached."""
        options = ["--one-location", str(self.one), "--wheelhouse", str(self.wheelhouse), "--user", USER]
        return ["unshare", "--net", str(source / "install/install.sh"), *options, *words]

    def install(self, *words: str, source: Path = ROOT) -> subprocess.CompletedProcess[str]:
        return run(self.argv(*words, source=source))

    def uninstall(self, *words: str, oned: str = "http://127.0.0.1:9/RPC2") -> subprocess.CompletedProcess[str]:
        """By the script that was installed; the checkout may be gone by then."""
        argv = [str(self.library / "install/uninstall.sh"), "--one-location", str(self.one), *words]
        return run(argv, ONE_AUTH=str(self.auth), ONE_XMLRPC=oned)

    def call(self, entry: str = "fastcopy/clone") -> subprocess.CompletedProcess[str]:
        """An action as oned would call it, which cannot succeed: there are no credentials."""
        argv = [str(self.one / "var/remotes/tm" / entry), "fe:/image", "host:/datastores/0/1/disk.0", "1", "1"]
        env = {"ONE_LOCATION": str(self.one), "HOME": "/nonexistent", "PATH": os.defpath}
        owner = pwd.getpwnam(USER)
        return subprocess.run(argv, env=env, cwd="/", capture_output=True, text=True, timeout=WAIT,
                              user=owner.pw_uid, group=owner.pw_gid, extra_groups=[])  # fmt: skip

    def state(self) -> dict[str, tuple[object, ...]]:
        """All that `diff -r` would see, and owners and modes."""
        found: dict[str, tuple[object, ...]] = {}
        for base, directories, files in os.walk(self.one):
            for name in directories + files:
                path = Path(base, name)
                status = path.lstat()
                what: object = os.readlink(path) if path.is_symlink() else ""
                if path.is_file() and not path.is_symlink():
                    what = hashlib.sha256(path.read_bytes()).hexdigest()
                key = str(path.relative_to(self.one))
                found[key] = (status.st_mode, status.st_uid, status.st_gid, what)
        return found


def run(argv: list[str], **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a script as root, with a Python that others may run, too."""
    env = {"PATH": os.environ["PATH"], "PYTHON": str(public_python()), "HOME": "/root", **environ}
    return subprocess.run(argv, env=env, cwd="/", capture_output=True, text=True, timeout=WAIT)


def make_wheelhouse(directory: Path) -> Path:
    """Collect wheels for this machine's Python."""
    version = "{}.{}".format(*sys.version_info[:2])
    argv = [str(ROOT / "install/wheels.sh"), "--python", version, "--machine", os.uname().machine, str(directory)]
    # pip is configured for this machine's network by what its environment and its user's files say.
    done = subprocess.run(argv, env={**os.environ, "PYTHON": str(public_python())}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return directory


def copy_of_the_sources(target: Path, version: str) -> Path:
    """What an older version's checkout would be."""
    hide = shutil.ignore_patterns("__pycache__")
    for name in ("tm_fastcopy", "install", "docs"):
        shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=hide)
    for name in ("README.md", "CHANGELOG.md", "LICENSE", "setup.cfg"):
        shutil.copyfile(ROOT / name, target / name)
    (target / "tm_fastcopy/__init__.py").write_text(f'"""An older one."""\n\n__version__ = "{version}"\n')
    return target


class Oned(SimpleXMLRPCServer):
    """Answers two calls: *datastores* by name to (TM_MAD, TM_MAD_SYSTEM), *vms* by name to an XML text."""

    def __init__(self, datastores: dict[str, tuple[str, str]], vms: dict[str, str]) -> None:
        class Handler(SimpleXMLRPCRequestHandler):
            rpc_paths = ("/RPC2",)

        super().__init__(("127.0.0.1", 0), Handler, logRequests=False)
        self.register_function(lambda *_: self._reply(datastores), "one.datastorepool.info")
        self.register_function(self._page, "one.vmpool.infoextended")
        self._vms = vms

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/RPC2"

    def _reply(self, datastores: dict[str, tuple[str, str]]) -> list[object]:
        items = "".join(
            f"<DATASTORE><ID>{100 + at}</ID><NAME>{name}</NAME><TM_MAD>{tm}</TM_MAD>"
            f"<TEMPLATE><TM_MAD_SYSTEM>{system}</TM_MAD_SYSTEM></TEMPLATE></DATASTORE>"
            for at, (name, (tm, system)) in enumerate(datastores.items())
        )
        return [True, f"<DATASTORE_POOL>{items}</DATASTORE_POOL>", 0]

    def _page(self, _auth: str, who: int, start: int, end: int, state: int) -> list[object]:
        assert (who, state) == (-2, -1) and start >= 0 and end < -1, "all users, not DONE, in pages"
        page = list(enumerate(self._vms.items()))[start : start - end]
        items = "".join(f"<VM><ID>{at}</ID><NAME>{name}</NAME>{text}</VM>" for at, (name, text) in page)
        return [True, f"<VM_POOL>{items}</VM_POOL>", 0]


@contextmanager
def oned(datastores: dict[str, tuple[str, str]], vms: dict[str, str]) -> Iterator[str]:
    """Where an oned answers with these."""
    with Oned(datastores, vms) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.endpoint
        finally:
            server.shutdown()
            thread.join()
