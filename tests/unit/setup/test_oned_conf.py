"""The editor of oned.conf: what it reads, and that its inverse restores every byte of any file it edits."""

from __future__ import annotations

from typing import List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tm_fastcopy.setup import onedconf, onedvalues, options
from tm_fastcopy.setup.conftext import Unreadable, parse
from tm_fastcopy.setup.edits import Plan, take_out

# -- what is read ------------------------------------------------------------------------------------------------------


def test_what_oned_reads_is_read() -> None:
    text = '# x = 1\nA = 1 # one\n b="two # = [ ]\nlines"\nEMPTY =\nV = [ # c\n X = "\\"q\\"" , # d\n y=z ] W=[]\n'
    found = {item.name: item for item in parse(text)}
    assert list(found) == ["A", "B", "EMPTY", "V", "W"]
    assert [found[name].value.text for name in ("A", "B") if found[name].value] == ["1", "two # = [ ]\nlines"]
    assert (found["EMPTY"].value, found["EMPTY"].pairs) == (None, None)
    assert [(pair.name, pair.value.text) for pair in found["V"].pairs or ()] == [("X", '"q"'), ("Y", "z")]
    assert found["W"].pairs == ()
    for item in found.values():
        assert text[item.start : item.end].upper().startswith(item.name)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ('A = "x', 1, "closing"),
        ("A\n", 2, "= is missing"),
        ('\nV = [ A = "1"\n B = "2" ]', 3, "comma"),
        ('V = [ A = "1", ]', 1, "name"),
        ("V = [ A = ]", 1, "value"),
        ('V =\n[ A = "1" ]', 2, "name"),
        ("]", 1, "name"),
        ('V = [ A = "1"', 1, "comma or ]"),
    ],
)
def test_what_oned_cannot_read_is_refused_with_its_line(text: str, line: int, what: str) -> None:
    with pytest.raises(Unreadable, match=f"line {line}: .*{what}"):
        parse(text)


def test_options_are_read_as_the_drivers_read_them() -> None:
    raw = "-t 15 -dssh,local --system-ds-types=a -w -s b"
    found = options.read(raw, options.DATASTORE)
    assert [(option.letter, option.text) for option in found] == [
        ("t", "15"), ("d", "ssh,local"), ("s", "a"), ("w", ""), ("s", "b"),
    ]  # fmt: skip
    for option in found:
        assert option.start is None or raw.startswith(option.text, option.start)


@pytest.mark.parametrize("raw", ["-x 1", "--tm 1", "word", "-d a, b", '-d \\"a\\"', "-", "-t 1 $X"])
def test_arguments_in_doubt_are_not_guessed_at(raw: str) -> None:
    with pytest.raises(options.Unclear):
        options.read(raw, options.TM)


# -- edit, and take back -----------------------------------------------------------------------------------------------

names = st.sampled_from(["ssh", "local", "shared", "qcow2", "fs_lvm", "fastcopy", "fastcopy2", "notfastcopy", "dev"])
blanks = st.sampled_from(["", " ", "  ", "\t"])
gaps = st.sampled_from([" ", "\n    ", " # fastcopy, \"x\" ]\n  ", "\n\n", "\t", "\r\n  "])
drivers = st.lists(names, max_size=5).map(",".join) | st.sampled_from(["ssh,", ",ssh", "a,,b", ",", "fastcopy,"])


@st.composite
def arguments(draw: st.DrawFn, letters: str) -> str:
    words = []
    for letter in draw(st.permutations(letters))[: draw(st.integers(0, len(letters)))]:
        value = str(draw(st.integers(0, 60))) if letter in "tw" else draw(drivers)
        if value and not value.startswith("-"):
            words.append(f"-{letter}{draw(st.sampled_from([' ', '   ', '']))}{value}")
    if draw(st.integers(0, 9)) == 0:
        words.append(draw(st.sampled_from(["-s again", "--tm-types x,y", "--verbose", "--ds-types=fs", "-d"])))
    return draw(blanks) + draw(st.sampled_from([" ", "  "])).join(words) + draw(blanks)


@st.composite
def vector(draw: st.DrawFn, name: str, pairs: List[str]) -> str:
    before, after = draw(gaps | st.just("")), draw(gaps | st.just(""))
    text = ""
    for at, pair in enumerate(pairs):
        text += ("," + draw(gaps | st.just("")) if at else "") + pair
    return f"{name}{draw(blanks)}={draw(blanks)}[{before}{text}{after}]"


@st.composite
def blocks(draw: st.DrawFn) -> str:
    kind = draw(st.sampled_from(["TM_MAD", "DATASTORE_MAD", "TM_MAD_CONF", "TM_MAD_CONF", "PORT", "LOG", "#"]))
    if kind == "PORT":
        return draw(st.sampled_from(['PORT = "2633"', "PORT=2633", "PORT =\n", 'X = "a\nb"']))
    if kind == "#":
        return draw(st.sampled_from(['# TM_MAD = [ ARGUMENTS = "-d x" ]\n', "#\n", "# fastcopy\r\n"]))
    if kind == "LOG":
        return draw(vector("LOG", ['SYSTEM = "FILE"', "LEVEL = 3"]))
    if kind == "TM_MAD":
        return draw(vector(kind, ['EXECUTABLE = "one_tm"', f'ARGUMENTS = "{draw(arguments("tdw"))}"']))
    if kind == "DATASTORE_MAD":
        return draw(vector(kind, [f'ARGUMENTS = "{draw(arguments("tdsw"))}"', "EXECUTABLE=one_datastore"]))
    pairs = [f'NAME = "{draw(names)}"', 'LN_TARGET="NONE"', 'SHARED = "YES"']
    if draw(st.booleans()):
        listed = draw(drivers).replace(",", draw(st.sampled_from([",", " , "])))
        pairs.append(f'TM_MAD_SYSTEM = "{draw(blanks)}{listed}{draw(blanks)}"')
    if draw(st.integers(0, 4)) == 0:
        pairs.append('LN_TARGET_FASTCOPY = "SYSTEM"')
    return draw(vector(kind, draw(st.permutations(pairs))))


@st.composite
def texts(draw: st.DrawFn) -> str:
    parts = [draw(blocks()) + draw(gaps) for _ in range(draw(st.integers(0, 8)))]
    text = draw(gaps | st.just("")) + "".join(parts)
    return text.rstrip() if draw(st.booleans()) else text


wishes = st.tuples(
    st.lists(st.sampled_from(["shared", "qcow2"]), unique=True, max_size=2),
    st.none() | st.integers(1, 60),
)


def undone(text: str, plan: Plan) -> str:
    return onedconf.undo(text, [edit.record() for edit in plan.edits])[0]


@given(texts(), wishes)
def test_any_edit_is_taken_back_to_the_byte(text: str, wish: tuple[List[str], int | None]) -> None:
    plan = onedconf.plan(text, *wish)
    after = plan.apply(text)
    assert undone(after, plan) == text
    assert not any("could not be taken back" in hand.why for hand in plan.by_hand), plan.by_hand
    if plan.edits:
        parse(after)
        again = onedconf.plan(after, *wish)
        assert again.edits == []
        assert again.by_hand == plan.by_hand or len(again.by_hand) == len(plan.by_hand)


@given(texts(), wishes)
def test_nothing_but_insertions_is_made(text: str, wish: tuple[List[str], int | None]) -> None:
    """Every character that was there is still there, in its order; only the number of threads is replaced."""
    plan = onedconf.plan(text, *wish)
    assert all(not edit.removed or edit.wish == "tm-threads" for edit in plan.edits)
    rest = iter(plan.apply(text))
    if not any(edit.removed for edit in plan.edits):
        assert all(character in rest for character in text)


STOCK = """\
TM_MAD = [ EXECUTABLE = "one_tm", ARGUMENTS = "-t 15 -d ssh" ]
DATASTORE_MAD = [ EXECUTABLE = "one_datastore", ARGUMENTS = "-d fs" ]
TM_MAD_CONF = [
    NAME = "shared", TM_MAD_SYSTEM = "ssh"
]
"""


def test_what_an_administrator_changed_since_stays() -> None:
    plan = onedconf.plan(STOCK, ["shared"], 30)
    after = plan.apply(STOCK)
    changes = [
        ("-t 30", "-t 50"),
        ("ssh,fastcopy\" ]\nDATA", "local,fastcopy,lvm\" ]\nDATA"),
        ("shared,ssh,ceph,fastcopy", "fastcopy,ssh"),
        ('"ssh,fastcopy"\n', '"fastcopy , ssh"\n'),
        ('TM_MAD_SYSTEM = "ssh,fastcopy"', 'TM_MAD_SYSTEM = "fastcopy , ssh"'),
        ('DS_LIVE_MIGRATE = "YES"', 'DS_LIVE_MIGRATE = "NO"'),
        ('DISK_TYPE_FASTCOPY = "FILE"', 'DISK_TYPE_FASTCOPY = "BLOCK"'),
    ]
    for old, new in changes:
        after = after.replace(old, new)
    left, by_hand = onedconf.undo(after, [edit.record() for edit in plan.edits])
    assert '"-t 50 -d local,lvm"' in left
    assert '"-d fs -s ssh"' in left
    assert 'TM_MAD_SYSTEM = "ssh"' in left
    assert sorted(hand.why.split(" was changed")[0] for hand in by_hand) == [
        "TM_MAD_CONF of fastcopy (line 9)",
        "TM_MAD_CONF of shared (line 3)",
    ]
    assert 'DS_LIVE_MIGRATE = "NO"' in left and 'DISK_TYPE_FASTCOPY = "BLOCK"' in left


def test_what_was_removed_already_is_no_problem() -> None:
    plan = onedconf.plan(STOCK, ["shared"], 30)
    assert onedconf.undo(STOCK, [edit.record() for edit in plan.edits]) == (STOCK, [])


def test_an_edit_that_could_not_be_taken_back_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onedconf, "undo", lambda text, records: (text, []))
    plan = onedconf.plan(STOCK)
    assert plan.apply(STOCK) == STOCK
    assert ["could not be taken back" in hand.why for hand in plan.by_hand] == [True]


def test_lines_are_ended_as_in_the_file() -> None:
    after = onedconf.plan(STOCK.replace("\n", "\r\n"), ["shared"]).apply(STOCK.replace("\n", "\r\n"))
    assert after.count("\n") == after.count("\r\n") > STOCK.count("\n")


@pytest.mark.parametrize(
    ("listed", "inserted", "left"),
    [
        ("a,fastcopy", ",fastcopy", "a"),
        ("a,fastcopy,b", ",fastcopy", "a,b"),
        ("fastcopy,a", ",fastcopy", "a"),
        ("fastcopy", ",fastcopy", ""),
        ("a,fastcopy2", ",fastcopy", "a,fastcopy2"),
        ("notfastcopy", "fastcopy", "notfastcopy"),
        ("a,fastcopy2,fastcopy", ",fastcopy", "a,fastcopy2"),
        ("a , fastcopy , b", ",fastcopy", "a , b"),
        ("a", ",fastcopy", "a"),
    ],
)
def test_an_item_is_taken_out_of_a_list(listed: str, inserted: str, left: str) -> None:
    assert take_out(f"<{listed}>", 1, 1 + len(listed), inserted, ["fastcopy"], r"\s*,\s*") == f"<{left}>"


# --- single values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('TM_MAD = [ EXECUTABLE = "one_tm", ARGUMENTS = "-t 40 -d ssh" ]', 40),
        ('TM_MAD = [ EXECUTABLE = "one_tm", ARGUMENTS = "-d ssh" ]', 15),
        ('TM_MAD = [ EXECUTABLE = "one_tm", ARGUMENTS = "-t many -d ssh" ]', None),
        ('TM_MAD = [ EXECUTABLE = "one_tm", ARGUMENTS = "--unknown" ]', None),
        ("PORT = 2633", None),
        ("TM_MAD = [", None),
    ],
)
def test_how_many_scripts_one_tm_runs(text: str, found: object) -> None:
    assert onedvalues.threads(text) == found


def test_a_value_is_the_last_of_its_name() -> None:
    text = "# SCRIPTS_REMOTE_DIR = /no\nSCRIPTS_REMOTE_DIR = /a\nSCRIPTS_REMOTE_DIR=/b\n"
    assert onedvalues.single(text, "SCRIPTS_REMOTE_DIR", "/c") == "/b"
    assert onedvalues.single("PORT = 1", "SCRIPTS_REMOTE_DIR", "/c") == "/c"
    assert onedvalues.single("PORT", "SCRIPTS_REMOTE_DIR", "/c") == "/c"


# -- what is left ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "why", "lines"),
    [
        (
            '\nTM_MAD = [ ARGUMENTS = "-t 15 -d ssh,fastcopy" ]',
            "the ARGUMENTS of TM_MAD (line 2) name fastcopy in -d",
            "ssh,fastcopy",
        ),
        (
            'DATASTORE_MAD = [\n ARGUMENTS = "-s fastcopy -d fs" ]',
            "the ARGUMENTS of DATASTORE_MAD (line 2) name fastcopy in -s",
            "fastcopy",
        ),
        (
            'DATASTORE_MAD = [ ARGUMENTS = "-s fastcopy -s ssh" ]',
            "the ARGUMENTS of DATASTORE_MAD (line 1) name fastcopy in -s",
            "fastcopy",
        ),
        (
            'TM_MAD = [ ARGUMENTS = "-t 15 --odd ssh,fastcopy" ]',
            "the ARGUMENTS of TM_MAD (line 1) are not understood, and name fastcopy",
            "-t 15 --odd ssh,fastcopy",
        ),
        (
            '# mine\nTM_MAD_CONF = [ NAME = "fastcopy",\n SHARED = "NO" ]',
            "TM_MAD_CONF of fastcopy (line 2) is still there: remove it",
            'TM_MAD_CONF = [ NAME = "fastcopy",\n SHARED = "NO" ]',
        ),
        (
            'TM_MAD_CONF = [\n NAME = "qcow2",\n TM_MAD_SYSTEM = "ssh, fastcopy" ]',
            "TM_MAD_SYSTEM of qcow2 (line 3) names fastcopy",
            "ssh, fastcopy",
        ),
        ('TM_MAD = [ ARGUMENTS = "-d fastcopy"\nX', "oned.conf cannot be read (line 2", ""),
    ],
)
def test_a_place_that_still_names_the_driver_is_named(text: str, why: str, lines: str) -> None:
    (hand,) = onedconf.left(text)
    assert why in hand.why
    assert hand.lines == lines


@pytest.mark.parametrize(
    "text",
    [
        STOCK,
        "# fastcopy\n" + STOCK,
        'TM_MAD = [ ARGUMENTS = "-d fastcopy2,notfastcopy" ]\n',
        'DATASTORE_MAD = [ ARGUMENTS = "-d fastcopy -s ssh" ]\n',  # no list of TM drivers
        'TM_MAD = [ ARGUMENTS = "-d ssh"\n# fastcopy\nX',
    ],
)
def test_nothing_is_named_where_the_driver_is_not(text: str) -> None:
    assert onedconf.left(text) == []


@given(texts(), wishes)
def test_after_the_inverse_only_what_was_there_before_is_named(text: str, wish: tuple[List[str], int | None]) -> None:
    plan = onedconf.plan(text, *wish)
    assert onedconf.left(undone(plan.apply(text), plan)) == onedconf.left(text)
