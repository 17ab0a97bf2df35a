"""What the driver needs in oned.conf, as edits; and their inverse.

Three things: the driver's name in one_tm's list of drivers (`-d`) and in one_datastore's list of system drivers (`-s`),
and a TM_MAD_CONF that says how oned treats its datastores.  On request, image datastores of `shared` and `qcow2` are
told that their images may go to system datastores of ours (TM_MAD_SYSTEM), and one_tm gets more threads.

Where the text leaves no doubt it is edited; where it does, nothing is touched, and the lines are named that an
administrator should write.  Sources: OpenNebula's one_tm.rb, one_datastore.rb, Datastore::set_tm_mad.
"""

from __future__ import annotations

import re
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from . import options
from .conftext import Attribute, Pair, Unreadable, Value, line_of, parse
from .edits import Edit, Hand, Plan, take_out

NAME = "fastcopy"
CONF = {
    "LN_TARGET": "SYSTEM",
    "CLONE_TARGET": "SYSTEM",
    "SHARED": "NO",
    "ALLOW_ORPHANS": "FORMAT",
    "DS_MIGRATE": "YES",
    "DS_LIVE_MIGRATE": "YES",
    "DS_MIGRATE_SNAP": "YES",
}
"""As the stock `local` has it: disks lie on hosts in the same way."""
SUFFIXED = {"LN_TARGET_FASTCOPY": "SYSTEM", "CLONE_TARGET_FASTCOPY": "SYSTEM", "DISK_TYPE_FASTCOPY": "FILE"}
THREADS = 30  # twice the transfers that our daemon runs at once: what waits in it holds a thread of one_tm each
_DEFAULT_THREADS = 15
_SYSTEM_DEFAULT = "shared,ssh,ceph"  # what one_datastore takes without -s
_COMMA = r"\s*,\s*"


def plan(text: str, image_tm: Sequence[str] = (), threads: Optional[int] = None) -> Plan:
    """What is to be done to *text*; *image_tm* are image drivers to be extended, *threads* what one_tm shall have."""
    made = Plan()
    try:
        attributes = parse(text)
    except Unreadable as error:
        made.by_hand.append(Hand(f"oned.conf cannot be read ({error}), so nothing was changed in it", _everything()))
        return made
    _transfer(made, text, attributes, threads)
    _datastore(made, text, attributes)
    _conf(made, text, attributes)
    for name in image_tm:
        _image(made, text, attributes, name)
    if made.edits and undo(made.apply(text), [edit.record() for edit in made.edits])[0] != text:
        made.by_hand.append(Hand("the edits could not be taken back, so nothing was changed", _everything()))
        made.edits = []
    return made


def _everything() -> str:
    return (
        f'TM_MAD: -d ...,{NAME} in ARGUMENTS\nDATASTORE_MAD: -s ...,{NAME} in ARGUMENTS (in the -s that is there)\n'
        + _block("\n")
    )


# -- the drivers' arguments --------------------------------------------------------------------------------------------


def _arguments(made: Plan, text: str, attributes: List[Attribute], name: str, line: str) -> Optional[Value]:
    """The ARGUMENTS of the one attribute *name*; None, and a line for an administrator, if they leave a doubt."""
    found = [item for item in attributes if item.name == name]
    problem = None
    if len(found) != 1:
        problem = f"there is no {name}" if not found else f"there are {len(found)} of {name}"
    elif found[0].pairs is None:
        problem = f"{name} has no [ ] (line {line_of(text, found[0].start)})"
    else:
        pairs = found[0].all("ARGUMENTS")
        if len(pairs) == 1 and pairs[0].value.quoted:
            return pairs[0].value
        problem = f"{name} (line {line_of(text, found[0].start)}) has "
        problem += f"{len(pairs)} ARGUMENTS" if len(pairs) != 1 else "ARGUMENTS without quotes"
    made.by_hand.append(Hand(problem, line))
    return None


def _read(
    made: Plan, text: str, value: Value, name: str, names: Dict[str, str], hint: str
) -> Optional[List[options.Option]]:
    try:
        return options.read(text[value.start : value.end], names)
    except options.Unclear as error:
        where = f"line {line_of(text, value.start)}"
        made.by_hand.append(Hand(f"the ARGUMENTS of {name} ({where}) are not understood: {error}", hint))
        return None


def _transfer(made: Plan, text: str, attributes: List[Attribute], threads: Optional[int]) -> None:
    hint = f'TM_MAD = [ EXECUTABLE = "one_tm", ARGUMENTS = "-t {THREADS} -d ...,{NAME}" ]'
    value = _arguments(made, text, attributes, "TM_MAD", hint)
    found = _read(made, text, value, "TM_MAD", options.TM, hint) if value else None
    if value is None or found is None:
        return
    lists = [option for option in found if option.letter == "d"]
    if not lists:
        made.present.append("TM_MAD has no -d: all drivers are enabled")
    else:
        _list(made, text, value, "TM_MAD", "d", lists, "tm-driver")
    _threads(made, value, found, threads)


def _threads(made: Plan, value: Value, found: List[options.Option], threads: Optional[int]) -> None:
    given = [option for option in found if option.letter == "t"]
    if any(option.start is None or not option.text.isdecimal() for option in given) or len(given) > 1:
        made.by_hand.append(Hand("the -t of TM_MAD is not one number", f"-t {threads or THREADS}"))
        return
    now = int(given[0].text) if given else _DEFAULT_THREADS
    if now >= (threads or THREADS):
        return
    if threads is None:
        made.advice.append(
            f"TM_MAD runs {now} transfers at a time (-t {now}), and one that waits for its turn counts: "
            f"-t {THREADS} is better with {NAME} (--threads {THREADS} sets it)"
        )
    elif given:
        made.edits.append(Edit("tm-threads", value.start + (given[0].start or 0), str(threads), given[0].text))
    else:
        made.edits.append(Edit("tm-threads", value.start, f"-t {threads} "))


def _datastore(made: Plan, text: str, attributes: List[Attribute]) -> None:
    hint = f'DATASTORE_MAD: ARGUMENTS = "... -s ...,{NAME}" (in the -s that is there, not a second one)'
    value = _arguments(made, text, attributes, "DATASTORE_MAD", hint)
    found = _read(made, text, value, "DATASTORE_MAD", options.DATASTORE, hint) if value else None
    if value is None or found is None:
        return
    lists = [option for option in found if option.letter == "s"]
    if lists:
        _list(made, text, value, "DATASTORE_MAD", "s", lists, "ds-system")
    else:  # one_datastore's own list, which the option replaces
        made.edits.append(Edit("ds-system", value.end, f" -s {_SYSTEM_DEFAULT},{NAME}"))


def _list(
    made: Plan, text: str, value: Value, name: str, letter: str, lists: List[options.Option], wish: str
) -> None:
    """Add the driver to the list that is the value of an option."""
    where = f"{name} (line {line_of(text, value.start)})"
    if len(lists) > 1:
        union = dict.fromkeys(item for option in lists for item in option.items)
        union[NAME] = None
        made.by_hand.append(
            Hand(f"{where} has {len(lists)} -{letter}, and only the last one holds: make them one",
                 f"-{letter} {','.join(union)}")
        )  # fmt: skip
    elif lists[0].start is None:
        made.by_hand.append(Hand(f"the -{letter} of {where} has no list", f"-{letter} ...,{NAME}"))
    elif NAME in lists[0].items:
        made.present.append(f"{where} names {NAME} in its -{letter}")
    else:
        listed = lists[0].text
        made.edits.append(Edit(wish, value.start + lists[0].start + len(listed), _item(listed)))


def _item(listed: str) -> str:
    """The driver's name as it goes to the end of a list."""
    return NAME if not listed.strip() or listed.rstrip().endswith(",") else f",{NAME}"


# -- TM_MAD_CONF -------------------------------------------------------------------------------------------------------


def _named(attributes: List[Attribute], name: str) -> List[Attribute]:
    return [item for item in attributes if item.name == "TM_MAD_CONF" and (item.get("NAME") or "") == name]


def _block(newline: str) -> str:
    pairs = [f'{name} = "{value}"' for name, value in CONF.items()]
    lines = [
        "TM_MAD_CONF = [",
        f'    NAME = "{NAME}", {", ".join(pairs[:3])},',
        f"    {', '.join(pairs[3:6])},",
        f"    {', '.join(pairs[6:])}",
        "]",
    ]
    return newline.join(lines)


def _conf(made: Plan, text: str, attributes: List[Attribute]) -> None:
    found = _named(attributes, NAME)
    newline = "\r\n" if "\r\n" in text else "\n"
    if len(found) > 1:
        made.by_hand.append(Hand(f"there are {len(found)} TM_MAD_CONF of {NAME}: keep this one", _block("\n")))
    elif found:
        _differing(made, text, found[0], CONF)
    else:
        others = [item for item in attributes if item.name == "TM_MAD_CONF"]
        at = len(text)
        if others:
            rest = re.compile(r"[ \t]*(?:#[^\n\r]*)?(?=\r?\n|\Z)").match(text, others[-1].end)
            at = rest.end() if rest else others[-1].end
            made.edits.append(Edit("conf", at, 2 * newline + _block(newline) + ("" if rest else newline)))
        else:
            ended = not text or text.endswith("\n")
            block = _block(newline) + newline if ended else newline + _block(newline)
            made.edits.append(Edit("conf", at, (newline if text else "") + block))


def _differing(made: Plan, text: str, block: Attribute, wanted: Mapping[str, str]) -> List[str]:
    """The names among *wanted* that *block* lacks; what it has otherwise is for an administrator."""
    where = f"TM_MAD_CONF of {block.get('NAME')} (line {line_of(text, block.start)})"
    other = {name: value for name, value in wanted.items() if (block.get(name) or value).upper() != value.upper()}
    lacking = [name for name in wanted if block.get(name) is None]
    if other:
        lines = ", ".join(f'{name} = "{value}"' for name, value in other.items())
        made.by_hand.append(Hand(f"{where} says otherwise than {NAME} needs", lines))
    if wanted is CONF and lacking:
        lines = ", ".join(f'{name} = "{CONF[name]}"' for name in lacking)
        made.by_hand.append(Hand(f"{where} lacks something", lines))
    if not other and not lacking:
        made.present.append(f"{where} is there")
    return lacking


def _image(made: Plan, text: str, attributes: List[Attribute], name: str) -> None:
    """Let images of the driver *name* go to system datastores of ours."""
    lines = ", ".join([f'TM_MAD_SYSTEM = "...,{NAME}"', *_pairs(SUFFIXED)])
    found = _named(attributes, name)
    if len(found) != 1 or not found[0].pairs:
        problem = f"there are {len(found)}" if found else "there is no"
        made.by_hand.append(Hand(f"{problem} TM_MAD_CONF of {name}", lines))
        return
    block = found[0]
    modes = block.all("TM_MAD_SYSTEM")
    if len(modes) > 1 or (modes and not modes[0].value.quoted):
        where = f"line {line_of(text, modes[0].start)}"
        made.by_hand.append(Hand(f"TM_MAD_SYSTEM of {name} ({where}) must be one, and in quotes", lines))
        return
    lacking = _differing(made, text, block, SUFFIXED)
    pairs = _pairs({key: SUFFIXED[key] for key in lacking})
    if not modes:
        pairs.insert(0, f'TM_MAD_SYSTEM = "{NAME}"')
    elif NAME not in [item.strip() for item in modes[0].value.text.split(",")]:
        value = modes[0].value
        listed = text[value.start : value.end]
        made.edits.append(Edit(f"image-system:{name}", value.start + len(listed.rstrip()), _item(listed)))
    if pairs:
        made.edits.append(Edit(f"image-pairs:{name}", _last(block).value.close, _more(text, block, pairs)))


def _pairs(wanted: Mapping[str, str]) -> List[str]:
    return [f'{name} = "{value}"' for name, value in wanted.items()]


def _last(block: Attribute) -> Pair:
    assert block.pairs
    return block.pairs[-1]


def _more(text: str, block: Attribute, pairs: List[str]) -> str:
    """*pairs* as they follow the last one of *block*: on lines of their own, if that is how it is written."""
    start = text.rfind("\n", 0, _last(block).start) + 1
    indent = text[start : _last(block).start]
    if "\n" not in text[block.start : block.end]:
        return "".join(f", {pair}" for pair in pairs)
    blank = re.match(r"[ \t]*", indent)
    newline = ("\r\n" if "\r\n" in text else "\n") + (blank[0] if blank else "")
    rows = [", ".join(pairs[at : at + 2]) for at in range(0, len(pairs), 2)]
    return "".join(f",{newline}{row}" for row in rows)


# -- the inverse -------------------------------------------------------------------------------------------------------


def undo(text: str, records: Sequence[Mapping[str, str]]) -> Tuple[str, List[Hand]]:
    """*text* without the edits of *records*, and what is left to an administrator.  The last edit goes first."""
    by_hand: List[Hand] = []
    for record in reversed(records):
        try:
            attributes = parse(text)
        except Unreadable as error:
            return text, [*by_hand, Hand(f"oned.conf cannot be read ({error}): take {NAME} out of it yourself")]
        text, problem = _undo(text, attributes, record["wish"], record["inserted"], record["removed"])
        if problem:
            by_hand.append(Hand(problem, record["inserted"].strip(", \r\n")))
    return text, by_hand


def _undo(text: str, attributes: List[Attribute], wish: str, inserted: str, removed: str) -> Tuple[str, str]:
    kind, _, name = wish.partition(":")
    if kind in ("tm-driver", "ds-system", "tm-threads"):
        return _undo_argument(text, attributes, kind, inserted, removed)
    blocks = _named(attributes, NAME if kind == "conf" else name)
    if not blocks:
        return text, ""  # somebody has removed it
    if kind == "conf":
        at = text.find(inserted)
        alike = at >= 0 and text.find(inserted, at + 1) < 0
        if alike and at <= blocks[0].start < at + len(inserted):
            return text[:at] + text[at + len(inserted) :], ""
        return text, f"TM_MAD_CONF of {NAME} (line {line_of(text, blocks[0].start)}) was changed, and stays: remove it"
    block = blocks[0]
    if kind == "image-system":
        value = next((pair.value for pair in block.all("TM_MAD_SYSTEM")), None)
        return (take_out(text, value.start, value.end, inserted, [NAME], _COMMA) if value else text), ""
    at = text.find(inserted, block.start, block.end)
    if at >= 0:
        return text[:at] + text[at + len(inserted) :], ""
    if any(pair.name in SUFFIXED for pair in block.pairs or ()):
        return text, f"TM_MAD_CONF of {name} (line {line_of(text, block.start)}) was changed: take this out of it"
    return text, ""


def _undo_argument(text: str, attributes: List[Attribute], kind: str, inserted: str, removed: str) -> Tuple[str, str]:
    name, letter, names = {
        "tm-driver": ("TM_MAD", "d", options.TM),
        "tm-threads": ("TM_MAD", "t", options.TM),
        "ds-system": ("DATASTORE_MAD", "s", options.DATASTORE),
    }[kind]
    values = [pair.value for item in attributes if item.name == name for pair in item.all("ARGUMENTS")]
    for value in values:
        raw = text[value.start : value.end]
        try:
            found = [option for option in options.read(raw, names) if option.letter == letter]
        except options.Unclear:
            if NAME not in raw or kind == "tm-threads":
                continue
            where = f"line {line_of(text, value.start)}"
            return text, f"the ARGUMENTS of {name} ({where}) are not understood: take this out of them"
        for option in found:
            if option.start is None:
                continue
            start, end = value.start + option.start, value.start + option.start + len(option.text)
            if kind == "tm-threads":
                return _undo_threads(text, value, start, end, inserted, removed), ""
            if inserted.lstrip().startswith("-"):  # the option itself was ours
                if raw.endswith(inserted):
                    return text[: value.end - len(inserted)] + text[value.end :], ""
                return take_out(text, start, end, f",{NAME}", [NAME], _COMMA), ""
            if NAME in option.items:
                return take_out(text, start, end, inserted, [NAME], _COMMA), ""
    return text, ""


def _undo_threads(text: str, value: Value, start: int, end: int, inserted: str, removed: str) -> str:
    if removed:
        return text[:start] + removed + text[end:] if text[start:end] == inserted else text
    if text.startswith(inserted, value.start):
        return text[: value.start] + text[value.start + len(inserted) :]
    return text  # an administrator has set another number


# -- what is left ------------------------------------------------------------------------------------------------------


def left(text: str) -> List[Hand]:
    """The places where *text* names the driver, each with what stands there: for an administrator to take out."""
    try:
        attributes = parse(text)
    except Unreadable as error:
        lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
        mentioned = any(NAME in line for line in lines)
        return [Hand(f"oned.conf cannot be read ({error}): take {NAME} out of it yourself")] if mentioned else []
    found: List[Hand] = []
    for item in attributes:
        if item.name == "TM_MAD":
            found += _left_in_arguments(text, item, "d", options.TM)
        elif item.name == "DATASTORE_MAD":
            found += _left_in_arguments(text, item, "s", options.DATASTORE)
        elif item.name == "TM_MAD_CONF":
            found += _left_in_conf(text, item)
    return found


def _left_in_arguments(text: str, item: Attribute, letter: str, names: Dict[str, str]) -> List[Hand]:
    found = []
    for value in (pair.value for pair in item.all("ARGUMENTS")):
        raw = text[value.start : value.end]
        where = f"the ARGUMENTS of {item.name} (line {line_of(text, value.start)})"
        try:
            lists = [option for option in options.read(raw, names) if option.letter == letter and NAME in option.items]
        except options.Unclear:
            if NAME in re.split(r"[\s,=\\\"']+", raw):
                found.append(Hand(f"{where} are not understood, and name {NAME}: take it out", raw))
        else:
            found += [Hand(f"{where} name {NAME} in -{letter}: take it out", option.text) for option in lists]
    return found


def _left_in_conf(text: str, item: Attribute) -> List[Hand]:
    if item.get("NAME") == NAME:
        where = f"line {line_of(text, item.start)}"
        return [Hand(f"TM_MAD_CONF of {NAME} ({where}) is still there: remove it", text[item.start : item.end])]
    found = []
    for value in (pair.value for pair in item.all("TM_MAD_SYSTEM")):
        if NAME in [word.strip() for word in value.text.split(",")]:
            where = f"line {line_of(text, value.start)}"
            why = f"TM_MAD_SYSTEM of {item.get('NAME')} ({where}) names {NAME}: take it out"
            found.append(Hand(why, value.text))
    return found
