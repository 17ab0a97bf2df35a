"""fastcopy completion: what a shell needs to complete the command's words.

The script is written from the parser and does not start the command: a key press must not wait for an interpreter.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

HELP = "print the completion script for a shell"
DESCRIPTION = """\
Prints the script that lets bash complete the words of this command.  The installer puts it where bash looks for it;
zsh reads it, too, after `autoload bashcompinit; bashcompinit`."""
EXAMPLES = """\
  source <(fastcopy completion bash)                   in this shell
  fastcopy completion bash > ~/.local/share/bash-completion/completions/fastcopy"""

FILE = Path("install", "fastcopy.bash-completion")
"""Where it is in a checkout; `python -m tm_fastcopy.commands.completion` writes it."""

_HEAD = """\
# Completion of the command `fastcopy` in bash.  Written by `fastcopy completion bash` from its parser (make reference).
_fastcopy() {
    local current=${COMP_WORDS[COMP_CWORD]} words="" path="" word at
    COMPREPLY=()
    for ((at = 1; at < COMP_CWORD; at++)); do
        word=${COMP_WORDS[at]}
        case "$path $word" in
"""
_MIDDLE = """\
        esac
    done
    case "$path" in
"""
_TAIL = """\
    esac
    if [[ -z $words || ($path == push && $current != -*) ]]; then
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
        return
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}
complete -o filenames -F _fastcopy fastcopy
"""


def options(parser: argparse.ArgumentParser) -> None:
    """The words that it knows."""
    parser.add_argument("shell", choices=["bash"], help="the shell")


def run(words: argparse.Namespace, environ: Dict[str, str]) -> int:
    """Print it."""
    from ..cli import parser

    print(script(parser()), end="")
    return 0


def script(top: argparse.ArgumentParser) -> str:
    """The script for bash."""
    places = list(walk(top, ""))
    steps = "".join(
        f'            "{path} {word}") path="{f"{path} {word}".strip()}" ;;\n'
        for path, parser in places
        for word in commands(parser)
    )
    offers = "".join(f'        "{path}") words="{" ".join(offered(parser))}" ;;\n' for path, parser in places)
    return _HEAD + steps + _MIDDLE + offers + _TAIL


def walk(parser: argparse.ArgumentParser, path: str) -> Iterator[Tuple[str, argparse.ArgumentParser]]:
    """All parsers with the commands that lead to them."""
    yield path, parser
    for name, below in commands(parser).items():
        yield from walk(below, f"{path} {name}".strip())


def commands(parser: argparse.ArgumentParser) -> Dict[str, argparse.ArgumentParser]:
    """The commands of a parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def offered(parser: argparse.ArgumentParser) -> List[str]:
    """What may stand next: commands, choices and options."""
    found = list(commands(parser))
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            continue
        found += action.option_strings if action.option_strings else [str(choice) for choice in action.choices or ()]
    return found


def main() -> None:
    """Write it into the checkout that is the current directory."""
    from ..cli import parser

    FILE.write_text(script(parser()))


if __name__ == "__main__":
    main()
