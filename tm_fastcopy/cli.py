"""fastcopy: the command for administrators.

    fastcopy status | cancel | push | cache | doctor | completion

Exit codes: 0 it went well, 1 it did not (and one sentence says why), 2 the words were not understood.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from typing import Optional, Sequence

from . import __version__
from .commands import account, cache, cancel, completion, doctor, push, status
from .core.errors import FastcopyError, classify
from .frontend.places import Places

COMMANDS = {
    "status": status, "cancel": cancel, "push": push, "cache": cache, "doctor": doctor, "completion": completion,
}  # fmt: skip
_OPEN_TO_ALL = ("completion",)
_EXAMPLES = """\
examples:
  fastcopy status --watch                         what is being transferred now
  fastcopy cancel 42                              end it for VM 42
  fastcopy doctor                                 is everything as it must be, here and on the hosts?
  fastcopy cache ls host1                         the images that a host keeps
  fastcopy push debian.img host1:/var/lib/one/datastores/100/999999/disk.0

`fastcopy COMMAND --help` has more of them.  Run it as oneadmin or root on the front-end."""


def parser() -> argparse.ArgumentParser:
    """The words that the command knows; shell completion is made from this, too."""
    top = argparse.ArgumentParser(
        prog="fastcopy", description="Looks after the TM driver fastcopy of OpenNebula.", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    top.add_argument("--version", action="version", version=f"fastcopy {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        added = commands.add_parser(
            name, help=module.HELP, description=wrapped(module.DESCRIPTION), epilog=f"examples:\n{module.EXAMPLES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        module.options(added)
    return top


def wrapped(text: str) -> str:
    """Paragraphs as wide as a terminal is at least."""
    return "\n\n".join(textwrap.fill(" ".join(part.split()), 79) for part in text.split("\n\n"))


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run a command; return the exit code."""
    words = parser().parse_args(argv)
    try:
        environ = dict(os.environ)
        if words.command not in _OPEN_TO_ALL:
            environ = account.assume(Places.of(environ))
        return int(COMMANDS[words.command].run(words, environ))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `fastcopy status | head`
        sys.stderr.close()
        return 1
    except (FastcopyError, OSError) as error:
        print(f"fastcopy {words.command}: {classify(error, words.command)}", file=sys.stderr)
        return 1




if __name__ == "__main__":
    sys.exit(main())
