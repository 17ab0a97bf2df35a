"""`bench/lab`: start a lab, look at it, enter it, take it away."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from bench.testbed.errors import LabError
from bench.testbed.lab import DEFAULT_DIRECTORY, Lab, LabConfig, check_directory, take_down
from bench.testbed.node import HOME, UID


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="bench/lab", description=__doc__)
    top.add_argument("--dir", type=Path, default=DEFAULT_DIRECTORY, help="where the lab lies (%(default)s)")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--dir", type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        return sub

    up = command("up", "start a lab, after removing what an earlier one left")
    up.add_argument("--hosts", type=int, default=2, help="number of hosts (%(default)s)")
    up.add_argument("--fs", default="xfs", help="xfs, btrfs or ext4; with commas one per host (%(default)s)")
    up.add_argument("--fe-fs", default="xfs", help="file system of the front-end's datastores (%(default)s)")
    up.add_argument("--rate", default="none", help="link of each host, like 1gbit, or none (%(default)s)")
    up.add_argument("--disk-size", default="20G", help="size of each datastores disk, sparse (%(default)s)")
    up.add_argument("--opennebula", type=Path, help="an OpenNebula source checkout: stock drivers and one_tm")
    rate = command("rate", "set a host's link rate")
    rate.add_argument("host")
    rate.add_argument("rate", help="like 1gbit, or none")
    shell = command("sh", "run a command, or a shell, on a node as oneadmin")
    shell.add_argument("host", help="host1, host2, ... or fe")
    shell.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- cmd ...")
    command("install", "install the driver of this checkout again, after a change")
    command("status", "say what runs")
    command("down", "remove everything")
    return top


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run one command; the exit code. Errors are one sentence on stderr."""
    args = parser().parse_args(argv)
    try:
        return run(args)
    except LabError as error:
        print(f"bench/lab: {error}", file=sys.stderr)
        return 1


def run(args: argparse.Namespace) -> int:
    """Do what the command line says."""
    if args.command == "up":
        return start(args)
    if args.command == "down":
        return stop(args.dir.resolve())
    lab = Lab.attach(args.dir)
    if args.command == "rate":
        lab.rate(args.host, none_or(args.rate))
    elif args.command == "sh":
        shell(lab, args.host, args.argv)
    elif args.command == "install":
        lab.install_driver()
    else:
        print(status(lab))
    return 0


def none_or(text: str) -> Optional[str]:
    """The word `none` as None."""
    return None if text == "none" else text


def start(args: argparse.Namespace) -> int:
    """`up`."""
    began = time.monotonic()
    lab = Lab.up(
        LabConfig(
            hosts=args.hosts,
            fs=tuple(args.fs.split(",")),
            fe_fs=args.fe_fs,
            rate=none_or(args.rate),
            dir=args.dir,
            disk_size=args.disk_size,
            opennebula=args.opennebula,
        )
    )
    print(status(lab))
    print(f"Up after {time.monotonic() - began:.1f} s. Enter a node with `bench/lab sh host1`.")
    return 0


def stop(directory: Path) -> int:
    """`down`: orderly if the lab can be attached to, and by what is left of it otherwise."""
    try:
        lab = Lab.attach(directory)
    except LabError:
        check_directory(directory)
        take_down(directory)
    else:
        lab.down()
    return 0


def shell(lab: Lab, host: str, argv: list[str]) -> None:
    """`sh`: becomes the command."""
    node = lab.node(host)
    if argv[:1] == ["--"]:
        argv = argv[1:]
    env = {**node.environment, "HOME": HOME, "USER": "oneadmin", "TERM": os.environ.get("TERM", "dumb")}
    if not argv:
        argv = ["/bin/bash"]
        env["PS1"] = rf"oneadmin@{host}:\w\$ "
    vector = node.command(argv, cwd=HOME)
    os.execve(vector[0], vector, env)  # noqa: S606 - a vector; the terminal must be the command's own


def status(lab: Lab) -> str:
    """A few lines about the lab that runs."""
    lines = [f"Lab in {lab.dir}, ONE_LOCATION={lab.one_location}, oneadmin is {UID}"]
    for node in [lab.fe, *lab.hosts.values()]:
        running = len(node.processes())
        lines.append(f"{node.name:8} {node.address:14} {node.fs:6} holder {node.holder}, {running} processes")
    lines.append(f"oned's stand-in: {lab.oned.condition()}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
