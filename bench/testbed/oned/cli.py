#!/usr/bin/python3 -IS
"""onevm, oneimage, onedatastore and onehost of the lab: `show` and `list`, with `-x` (XML) or `--json`."""

from __future__ import annotations

import json
import os
import sys
import xml.etree.ElementTree as ElementTree
import xmlrpc.client
from pathlib import Path


def call(method: str, *arguments: object) -> str:
    """One call to oned; its value. Ends the program with oned's text if it fails."""
    url = os.environ.get("ONE_XMLRPC", "http://127.0.0.1:2633/RPC2")
    auth = os.environ.get("ONE_AUTH")
    token = Path(auth).read_text().strip() if auth else "oneadmin:oneadmin"
    try:
        with xmlrpc.client.ServerProxy(url) as server:
            done, value = getattr(server, method)(token, *arguments)[:2]
    except (OSError, xmlrpc.client.Error) as error:
        sys.exit(f"oned does not answer: {error}")
    if not done:
        sys.exit(str(value))
    return str(value)


def number(kind: str, text: str) -> int:
    """An object's id, looked up when `text` is its name."""
    if text.isdigit():
        return int(text)
    for item in ElementTree.fromstring(pool(kind)):
        if item.findtext("NAME") == text:
            return int(item.findtext("ID", "-1"))
    sys.exit(f"{kind} named {text} not found.")


def pool(kind: str) -> str:
    """All objects of a kind."""
    return call(f"one.{kind}pool.info", *(() if kind in ("datastore", "host") else (-2, -1, -1)))


def plain(element: ElementTree.Element) -> object:
    """An element as OpenNebula's JSON has it: text, an object, or a list where a name repeats."""
    if len(element) == 0:
        return element.text or {}
    found: dict[str, list[object]] = {}
    for child in element:
        found.setdefault(child.tag, []).append(plain(child))
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def main() -> None:
    """Answer one command line."""
    kind = Path(sys.argv[0]).name[len("one") :]
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    options = set(sys.argv[1:]) - set(words)
    if not options <= {"-x", "--xml", "--json", "-j"} or not options or words[:1] not in (["show"], ["list"]):
        sys.exit("The lab's command knows `show ID` and `list`, with -x or --json.")
    if words == ["show"]:
        sys.exit("Which one? An ID or a name is missing.")
    document = pool(kind) if words[0] == "list" else call(f"one.{kind}.info", number(kind, words[1]))
    element = ElementTree.fromstring(document)
    if options & {"--json", "-j"}:
        print(json.dumps({element.tag: plain(element)}))
        return
    ElementTree.indent(element)
    print(ElementTree.tostring(element, encoding="unicode"))


if __name__ == "__main__":
    main()
