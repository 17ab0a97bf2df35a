"""A clean Debian in a directory, with an OpenNebula front-end as packages lay it out, whose network is a lab's.

What OpenNebula's packages bring is made here: the user oneadmin, sudo, an ssh client, and the tree, by the installer of
a source checkout.  `systemctl`, `onehost sync` and `onedatastore create` are stand-ins: there is no oned.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.images import mirror, tools
from bench.images.debian import prepare
from bench.testbed import Lab
from bench.testbed.node import HOME, UID

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("FASTCOPY_CACHE", "/var/cache/fastcopy"))
PACKAGES = "sudo,openssh-client,ca-certificates,rsync"
"""Those that OpenNebula's depend on, as far as they are called here."""
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
WAIT = 900.0  # seconds for one command; pip may build nothing, but fetches

# Mounts, and whatever is started, end with the command. "$0" is the Debian, "$1" the command; the rest is bound.
INSIDE = """\
mount --bind "$0" "$0"
mount -t proc proc "$0/proc"
mount --rbind /dev "$0/dev"
debian=$0
command=$1
shift
for path; do mount --bind "$path" "$debian$path"; done
exec chroot "$debian" /bin/sh -c "cd /root/checkout 2>/dev/null; $command"
"""

SYNC = """\
#!/bin/sh
# What `onehost sync --force` does.
for host in {hosts}; do
    ssh "$host" 'rm -rf /var/tmp/one && mkdir /var/tmp/one' || exit 1
    tar -C /var/lib/one/remotes -cf - . | ssh "$host" tar -C /var/tmp/one -xf - || exit 1
done
"""
CREATE = '#!/bin/sh\n[ "$1" = create ] && cp "$2" /root/created\n'


class CleanDebian:
    """The Debian *suite* below *root*, beside a lab."""

    def __init__(self, root: Path, suite: str, checkout: str, lab: Lab) -> None:
        self.root, self._lab = root, lab
        self._pip, self._bound = pip_configuration()
        subprocess.run(["tar", "-C", root, "-xf", base_system(suite)], check=True)
        prepare(root)
        (root / "etc/apt/apt.conf.d/yes").write_text('APT::Get::Assume-Yes "true";\n')
        for path in self._bound:
            (root / path.relative_to("/")).mkdir(parents=True, exist_ok=True)
        for path in (Path("/etc/pip.conf"), Path("/root/.config/pip/pip.conf"), CERTIFICATES):
            if path.exists():  # the network of this machine may have an authority of its own
                copied = root / path.relative_to("/")
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copied)
        self._open_nebula(checkout)
        hide = shutil.ignore_patterns(".git", ".venv", "build", "__pycache__", "*.egg-info", ".mypy_cache", ".*_cache")
        shutil.copytree(ROOT, root / "root/checkout", symlinks=True, ignore=hide)

    def _open_nebula(self, checkout: str) -> None:
        self.run(f"groupadd -g {UID} oneadmin && useradd -u {UID} -g {UID} -d {HOME} -s /bin/bash oneadmin").check()
        shutil.copytree(checkout, self.root / "root/one", symlinks=True, ignore=shutil.ignore_patterns(".git"))
        self.run("cd /root/one && ./install.sh -u oneadmin -g oneadmin")  # what a checkout lacks it complains about
        assert (self.root / "etc/one/oned.conf").is_file()
        shutil.rmtree(self.root / "root/one")
        home = self.root / HOME.lstrip("/")
        shutil.copytree(self._lab.fe.files / "home", home, dirs_exist_ok=True)
        for path in [home, *home.rglob("*")]:
            os.lchown(path, UID, UID)
        shutil.copyfile(self._lab.fe.files / "etc/hosts", self.root / "etc/hosts")
        commands = {
            "systemctl": "#!/bin/sh\n", "onedatastore": CREATE, "onehost": SYNC.format(hosts=" ".join(self._lab.hosts)),
        }  # fmt: skip
        for name, text in commands.items():
            path = self.root / "usr/bin" / name
            path.unlink(missing_ok=True)
            path.write_text(text)
            path.chmod(0o755)

    def run(self, command: str, beside_hosts: bool = False) -> Ended:
        """Run a command as root, in the network of this machine, or of the lab's front-end."""
        holder = self._lab.fe.holder
        namespaces = f"--net=/proc/{holder}/ns/net", f"--uts=/proc/{holder}/ns/uts"
        enter = ["nsenter", *namespaces, "--"] if beside_hosts else []
        own = ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--"]
        argv = [*enter, *own, "sh", "-ec", INSIDE, str(self.root), command, *map(str, self._bound)]
        environment = {**tools.environment(), **self._pip}
        done = subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=WAIT)  # fmt: skip
        return Ended(command, done.returncode, done.stdout)

    def state(self) -> dict[str, str]:
        """Everything that OpenNebula and the system have, but what programs keep for themselves."""
        found = {}
        for top in ("etc", "usr/bin", "usr/lib/one", "usr/share/bash-completion", "var/lib/one", "var/log/one"):
            for path in (self.root / top).rglob("*"):
                status = path.lstat()
                what = os.readlink(path) if path.is_symlink() else ""
                if path.is_file() and not path.is_symlink():
                    what = hashlib.sha256(path.read_bytes()).hexdigest()
                found[str(path.relative_to(self.root))] = f"{status.st_mode:o} {status.st_uid} {status.st_gid} {what}"
        return found


class Ended:
    """How a command ended."""

    def __init__(self, command: str, code: int, text: str) -> None:
        self.command, self.code, self.text = command, code, text
        print(f"$ {command}\n{text}")

    def check(self) -> Ended:
        """Assert that it went well."""
        assert self.code == 0, f"{self.command}\n{self.text}"
        return self


def base_system(suite: str) -> Path:
    """A tar file of a minimal Debian, made once."""
    kept = CACHE / f"clean-{suite}.tar"
    if not kept.exists():
        tree = CACHE / f"clean-{suite}"
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir(parents=True)
        bootstrap = [tools.program("debootstrap"), "--variant=minbase", f"--include={PACKAGES}", suite, str(tree)]
        tools.run(tools.contained([*bootstrap, mirror.debian_mirror()]), CACHE / f"clean-{suite}.log")
        subprocess.run(["tar", "-C", tree, "-cf", f"{kept}.new", "."], check=True)
        os.rename(f"{kept}.new", kept)
        shutil.rmtree(tree)
    return kept


def pip_configuration() -> tuple[dict[str, str], Sequence[Path]]:
    """How pip reaches an index on this machine: variables, and directories that they or its files name."""
    variables = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    words = re.findall(r"(?:file://)?(/[^\s'\",]+)", " ".join([listed.stdout, *variables.values()]))
    found = {Path(word) for word in words if Path(word).is_dir()}
    # The files of an index lie beside its pages.
    return variables, sorted({path.parent if path.name == "simple" else path for path in found})


def literal_commands(readme: str, section: str) -> list[str]:
    """The commands of a section of README, without what is behind two blanks and a `#`."""
    text = readme.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    return [re.split(r"\s{2,}# ", line)[0].strip() for line in lines]
