"""The front-end's OpenNebula tree (`ONE_LOCATION`), with or without the stock parts of a checkout.

Parts of a checkout are copied, not linked: the checkout may lie where oneadmin cannot read, and a node's
processes must not be able to write to it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from bench.testbed.errors import LabError, program

DIRECTORIES = [
    "bin",
    "etc/vmm_exec",
    "lib/mads",
    "lib/ruby/vendors",
    "lib/sh",
    "share/gems",
    "var/datastores",
    "var/vms",
    "var/remotes/datastore",
    "var/remotes/etc/tm/ssh",
    "var/remotes/tm",
]

# Gems that OpenNebula's Ruby library loads for its service scheduler, that a TM driver never calls, and that Debian
# does not ship.
UNUSED_GEMS = ["parse-cron"]

# Prints `place below a gem directory, TAB, where it really is` for description, code and compiled code of each gem.
LIST_GEMS = """
Gem::Specification.reject(&:default_gem?).each do |gem|
  puts "specifications/#{File.basename(gem.loaded_from)}\\t#{gem.loaded_from}"
  puts "gems/#{gem.full_name}\\t#{gem.full_gem_path}"
  puts "extensions/#{gem.extension_dir.split('/extensions/').last}\\t#{gem.extension_dir}"
end
"""

ONED_CONF = """\
# The lab's stand-in for oned reads none of this; it is here for programs that look for it.
PORT = 2633
TM_MAD = [ EXECUTABLE = "one_tm", ARGUMENTS = "-t 15 -d dummy,ssh,local,shared,qcow2,fastcopy" ]
DATASTORE_MAD = [ EXECUTABLE = "one_datastore", ARGUMENTS = "-t 15 -d dummy,fs -s shared,ssh,local,fastcopy" ]
TM_MAD_CONF = [
    NAME = "fastcopy", LN_TARGET = "SYSTEM", CLONE_TARGET = "SYSTEM", SHARED = "NO",
    ALLOW_ORPHANS = "FORMAT", DS_MIGRATE = "YES", DS_LIVE_MIGRATE = "YES",
    DS_MIGRATE_SNAP = "YES"
]
"""
VMM_EXECRC = 'LIVE_DISK_SNAPSHOTS="kvm-qcow2 kvm-ssh kvm-fastcopy qemu-fastcopy lxc-fastcopy"\n'

# Source below the checkout -> directory (ends with /) or name below the tree.
STOCK = {
    "src/mad/sh/scripts_common.sh": ["lib/sh/", "var/remotes/"],
    "src/mad/sh/madcommon.sh": ["lib/mads/"],
    "src/mad/ruby": ["lib/ruby/"],
    "src/mad/ruby/CommandManager.rb": ["var/remotes/"],
    "src/mad/ruby/DriverLogger.rb": ["var/remotes/"],
    "src/oca/ruby": ["lib/ruby/"],
    "share/misc/load_opennebula_paths.rb": ["lib/ruby/"],
    "src/tm_mad/one_tm": ["lib/mads/"],
    "src/tm_mad/one_tm.rb": ["lib/mads/"],
    "src/tm_mad/tmrc": ["etc/"],
    "src/tm_mad": ["var/remotes/tm/"],
    "src/tm_mad/ssh/sshrc": ["var/remotes/etc/tm/ssh/"],
    "src/datastore_mad/remotes": ["var/remotes/datastore/"],
    "src/vmm_mad/remotes/lib": ["var/remotes/vmm/lib/"],
    "src/vmm_mad/remotes/kvm": ["var/remotes/vmm/kvm/"],
}

# The same of an installed OpenNebula: source below the machine's root.
INSTALLED = {
    "usr/lib/one/sh/scripts_common.sh": ["lib/sh/", "var/remotes/"],
    "usr/lib/one/mads": ["lib/mads/"],
    "usr/lib/one/ruby": ["lib/ruby/"],
    "usr/share/one/gems": ["share/gems/"],
    "etc/one/tmrc": ["etc/"],
    "var/lib/one/remotes": ["var/remotes/"],
}


def create(one: Path) -> None:
    """Make the empty tree with its few configuration files."""
    for name in DIRECTORIES:
        (one / name).mkdir(parents=True)
    (one / "etc/oned.conf").write_text(ONED_CONF)
    (one / "etc/vmm_exec/vmm_execrc").write_text(VMM_EXECRC)
    (one / "var/config").write_text("SCRIPTS_REMOTE_DIR=/var/tmp/one\n")  # oned writes its settings there
    (one / "etc/tmrc").write_text("# Environment of the TM drivers, as shell assignments.\n")
    (one / "etc/defaultrc").write_text("# Drivers run with this priority.\nPRIORITY=19\n")


def add_stock(one: Path, checkout: Path) -> None:
    """Copy what one_tm and the stock drivers need from an OpenNebula source checkout, or from the root of a machine
    that has OpenNebula installed. LabError if it is neither."""
    installed = (checkout / "usr/lib/one/mads/one_tm.rb").is_file()
    if not installed and not (checkout / "src/tm_mad/one_tm.rb").is_file():
        raise LabError(f"{checkout} is no OpenNebula source checkout: src/tm_mad/one_tm.rb is missing there.")
    for source, targets in (INSTALLED if installed else STOCK).items():
        for target in targets:
            copy(checkout / source, one / target)
    link_gems(one)


def link_gems(one: Path) -> None:
    """Let stock Ruby find the machine's gems: it looks only in OpenNebula's own, which no checkout holds.

    Stock `ssh` needs rexml, stock `local` nokogiri too; what is not installed shows when it is called.
    """
    done = subprocess.run([program("ruby"), "-e", LIST_GEMS], capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != 0:
        raise LabError(f"Ruby cannot list its gems: {done.stderr.strip()}")
    for line in done.stdout.splitlines():
        below, path = line.split("\t")
        link = one / "share/gems" / below
        if Path(path).exists() and not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    for name in UNUSED_GEMS:
        (one / "lib/ruby/lab").mkdir(exist_ok=True)
        (one / "lib/ruby/lab" / f"{name}.rb").write_text("# Loaded and never used by what runs in the lab.\n")


def copy(source: Path, directory: Path) -> None:
    """Copy a file, or everything in a directory, into `directory`; symbolic links stay links."""
    if not source.exists():  # older and newer releases differ; what is needed shows when it is called
        return
    directory.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, directory, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(source, directory / source.name)


def give(directory: Path, uid: int) -> None:
    """Make oneadmin the owner of a tree; links are not followed."""
    os.lchown(directory, uid, uid)
    for base, directories, files in os.walk(directory):
        for name in directories + files:
            os.lchown(Path(base, name), uid, uid)
