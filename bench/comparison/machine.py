"""What the figures were taken on: machine, kernel, versions of what takes part."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Dict, Optional, Sequence

import tm_fastcopy

_WAIT = 20.0  # seconds for a program to say its version


def machine() -> Dict[str, str]:
    """Processor, cores, memory, kernel, system."""
    cpu = _first(Path("/proc/cpuinfo"), r"^model name\s*:\s*(.+)$") or platform.machine()
    memory = _first(Path("/proc/meminfo"), r"^MemTotal:\s*(\d+) kB$")
    system = _first(Path("/etc/os-release"), r'^PRETTY_NAME="?([^"\n]+)"?$')
    return {
        "processor": cpu,
        "cores": str(os.cpu_count()),
        "memory": f"{int(memory) / 2**20:.1f} GiB" if memory else "?",
        "kernel": platform.release(),
        "system": system or "?",
    }


def versions(opennebula: Optional[Path]) -> Dict[str, str]:
    """Versions of the programs that take part; what is not installed is left out."""
    asked = {
        "ssh": (["ssh", "-V"], r"(\S+)"),
        "ruby": (["ruby", "--version"], r"ruby (\S+)"),
        "tar": (["tar", "--version"], r"(\S+)$"),
        "qemu-img": (["qemu-img", "--version"], r"version (\S+)"),
        "nfs-ganesha": (["ganesha.nfsd", "-v"], r"(?:Release = |V)(\S+)"),
    }
    found = {"fastcopy": tm_fastcopy.__version__, "python": platform.python_version()}
    found.update({name: text for name, (argv, pattern) in asked.items() if (text := _said(argv, pattern))})
    if opennebula is not None:
        found["OpenNebula"] = opennebula_version(opennebula) or "?"
    return found


def opennebula_version(root: Path) -> Optional[str]:
    """The release of a source checkout or of an installed OpenNebula, from its Ruby library."""
    for name in ("src/oca/ruby/opennebula/version.rb", "usr/lib/one/ruby/opennebula/version.rb"):
        if (root / name).is_file():
            return _first(root / name, r"^\s*VERSION\s*=\s*'([^']+)'")
    return None


def _first(path: Path, pattern: str) -> Optional[str]:
    try:
        match = re.search(pattern, path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return match[1].strip() if match else None


def _said(argv: Sequence[str], pattern: str) -> Optional[str]:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_WAIT, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = (done.stdout + done.stderr).strip().splitlines()
    match = re.search(pattern, lines[0]) if lines else None
    return match[1].rstrip(",") if match else None
