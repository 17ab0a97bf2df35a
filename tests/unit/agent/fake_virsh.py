#!/usr/bin/env python3
"""virsh as far as live snapshots use it: a VM "one-42" whose disk "vda" is the file that `source` names.

Beside the program lie `source` (the path that the VM writes to), `log` (one call a line), and files that make a call
fail: `fail-<command>` before it has done anything, `late-<command>` after; `kill-<command>` kills who called.
`paused` and `frozen` are there while the VM, or its file systems, are so.  What the VM does, qemu-img does here.
"""

import json
import os
import signal
import subprocess
import sys

HOME = os.path.dirname(os.path.abspath(__file__))
DISK = """<disk type='file' device='disk'><source file='%s'/>%s<target dev='vda' bus='virtio'/></disk>"""
OTHER = """<disk type='file' device='disk'><source file='/elsewhere/disk.1'/><target dev='vdb'/></disk>
<disk type='file' device='cdrom'><source file='/elsewhere/disk.2'/><target dev='hda'/><readonly/></disk>"""


def path(name):
    return os.path.join(HOME, name)


def source():
    with open(path("source")) as file:
        return file.read().strip()


def backing(file):
    about = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", "-U", file]))
    return about.get("full-backing-filename")


def below(file):
    """The description of what a file rests on."""
    name = backing(file)
    return f"<backingStore type='file'><source file='{name}'/>{below(name)}</backingStore>" if name else ""


def option(words, name):
    return words[words.index(name) + 1] if name in words else None


def main():
    words = [word for word in sys.argv[1:] if word != "--quiet"]
    assert words[:2] == ["--connect", "qemu:///system"], words
    command, words = words[2], words[3:]
    if command not in ("dumpxml", "domstate"):
        with open(path("log"), "a") as log:
            log.write(" ".join([command, *words[1:]]) + "\n")
    if os.path.exists(path("fail-" + command)):
        sys.exit(f"error: {command}: the VM does not want to")
    assert words[0] == "one-42", words
    if command == "dumpxml":
        print(f"<domain><devices>{DISK % (source(), below(source()))}{OTHER}</devices></domain>")
    elif command == "snapshot-create-as":
        specs = [words[i + 1] for i, word in enumerate(words) if word == "--diskspec"]
        assert sorted(specs)[:2] == ["hda,snapshot=no", "vda,snapshot=external,file=" + specs[-1].split("=")[-1]], specs
        assert {"--disk-only", "--atomic", "--no-metadata", "--reuse-external"} <= set(words)
        with open(path("source"), "w") as file:
            file.write(specs[-1].split("file=")[1])
    elif command == "blockcopy":
        assert {"--wait", "--finish"} <= set(words) and words[1] == "vda"
        assert os.path.getsize(words[2]) == 0
        subprocess.check_call(["cp", "--sparse=always", source(), words[2]])
    elif command == "blockpull":
        base = option(words, "--base")
        name = os.path.basename(base) if base else ""
        subprocess.check_call(
            ["qemu-img", "rebase", "-f", "qcow2", "-F", "qcow2", "-b", name, source()], cwd=os.path.dirname(source())
        )
    elif command == "domstate":
        print("paused" if os.path.exists(path("paused")) else "running")
    elif command in ("suspend", "domfsfreeze"):
        open(path("paused" if command == "suspend" else "frozen"), "w").close()
    else:
        assert command in ("resume", "domfsthaw"), command
        if command == "domfsthaw" and os.path.exists(path("paused")):
            sys.exit("error: the guest agent does not answer")
        if os.path.exists(path("paused" if command == "resume" else "frozen")):
            os.unlink(path("paused" if command == "resume" else "frozen"))
    if os.path.exists(path("kill-" + command)):
        os.kill(os.getppid(), signal.SIGKILL)
    if os.path.exists(path("late-" + command)):
        sys.exit(f"error: {command}: connection reset")


main()
