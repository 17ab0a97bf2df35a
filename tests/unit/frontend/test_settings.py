"""Settings: where each is taken from, and the sentence for every mistake."""

from __future__ import annotations

import itertools
from dataclasses import fields
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tm_fastcopy.core.errors import Refused
from tm_fastcopy.frontend.kinds import Limit
from tm_fastcopy.frontend.oned import Datastore
from tm_fastcopy.frontend.settings import (
    EITHER,
    FRONT_END,
    MAX_LANES,
    SYSTEM,
    TABLE,
    CacheSettings,
    Configuration,
    Setting,
    Settings,
)

NAMED = {setting.name: setting for setting in TABLE}

# For every setting: a text that is not its default, what it means, and another text with its meaning.
EXAMPLES: Dict[str, Any] = {
    "lanes": ("3", 3, "4", 4),
    "clone": ("copy", "copy", "reflink", "reflink"),
    "verify": ("always", "always", "scrubbed", "scrubbed"),
    "compression": ("zstd", "zstd", "none", "none"),
    "max_transfers": ("30", 30, "31", 31),
    "max_transfers_per_host": ("5", 5, "6", 6),
    "bwlimit": ("100M", 100 << 20, "64K", 64 << 10),
    "bwlimit_host": ("1G", 1 << 30, "70M", 70 << 20),
    "daemon": ("no", False, "yes", True),
    "idle_exit": ("60", 60, "61", 61),
    "cache.enable": ("no", False, "yes", True),
    "cache.max_size": ("50%", Limit(50, True), "2G", Limit(2 << 30, False)),
    "cache.reserve": ("1%", Limit(1, True), "3G", Limit(3 << 30, False)),
    "cache.min_age": ("900", 900, "901", 901),
    "cache.scrub_rate": ("1M", 1 << 20, "0", 0),
}


def of(settings: Settings, name: str) -> Any:
    """The value of a setting by its dotted name."""
    found: Any = settings
    for part in name.split("."):
        found = getattr(found, part)
    return found


def read(
    tmp_path: Path,
    environment: Optional[Mapping[str, str]] = None,
    system: Optional[Mapping[str, str]] = None,
    image: Optional[Mapping[str, str]] = None,
    file: str = "",
) -> Settings:
    """The settings with these contents of the places."""
    path = tmp_path / "fastcopy.yaml"
    path.write_text(file)
    return Configuration.read(environment or {}, path).settings(
        Datastore(0, "/d/0", True, system or {}), Datastore(1, "/d/1", False, image or {})
    )


# --- the table ---------------------------------------------------------------------------------------------------


def test_defaults() -> None:
    assert Settings.of({}) == Settings(
        lanes=2,
        clone="auto",
        verify="scrubbed",
        compression="auto",
        max_transfers=15,
        max_transfers_per_host=4,
        bwlimit=0,
        bwlimit_host=0,
        daemon=True,
        idle_exit=600,
        cache=CacheSettings(
            enable=True,

            max_size=Limit(80, True),
            reserve=Limit(5, True),
            min_age=0,
            scrub_rate=20 << 20,
        ),
    )


def test_the_table_and_the_settings_have_the_same_names() -> None:
    own = {field.name for field in fields(Settings) if field.name != "cache"}
    assert own | {f"cache.{field.name}" for field in fields(CacheSettings)} == set(NAMED) == set(EXAMPLES)
    assert len({setting.attribute for setting in TABLE}) == len(TABLE)


def test_who_decides_what() -> None:
    by_owner = {owner: {s.name for s in TABLE if s.owner == owner} for owner in (FRONT_END, SYSTEM, EITHER)}
    assert by_owner[FRONT_END] == {"max_transfers", "max_transfers_per_host", "bwlimit", "daemon", "idle_exit"}
    assert by_owner[EITHER] == {"lanes", "compression", "cache.enable"}
    assert sum(map(len, by_owner.values())) == len(TABLE)


# --- precedence --------------------------------------------------------------------------------------------------

STOCK = {"cache.enable": ("NO", False),
         "cache.max_size": ("7", Limit(7, True)), "cache.min_age": ("77", 77)}  # fmt: skip
DATASTORES: Dict[str, List[str]] = {FRONT_END: [], SYSTEM: ["system"], EITHER: ["system", "image"]}


def places(setting: Setting) -> List[str]:
    """The places where a setting may stand, highest first."""
    stock = ["stock"] if setting.stock else []
    return ["environment", *DATASTORES[setting.owner], *stock, "file", "default"]


def texts(setting: Setting, place: str) -> List[Tuple[str, Any]]:
    """What may be written there, each with its meaning."""
    if place == "stock":
        return [STOCK[setting.name]]
    if place == "default":
        return [("", of(Settings.of({}), setting.name))]
    one, one_means, two, two_means = EXAMPLES[setting.name]
    return [(one, one_means), (two, two_means)]


@pytest.mark.parametrize(
    ("setting", "higher", "lower"),
    [
        pytest.param(setting, higher, lower, id=f"{setting.name}: {higher} over {lower}")
        for setting in TABLE
        for higher, lower in itertools.combinations(places(setting), 2)
    ],
)
def test_precedence(tmp_path: Path, setting: Setting, higher: str, lower: str) -> None:
    pairs = itertools.product(texts(setting, higher), texts(setting, lower))
    above, below = next((above, below) for above, below in pairs if above[1] != below[1])
    contents: Dict[str, Any] = {}
    for place, text in ((higher, above[0]), (lower, below[0])):
        if place == "file":
            contents["file"] = f"{setting.name}: '{text}'\n"
        elif place == "stock":
            assert setting.stock
            contents.setdefault("image", {})[setting.stock.attribute] = text
        elif place != "default":
            contents.setdefault(place, {})[setting.attribute] = text
    assert of(read(tmp_path, **contents), setting.name) == above[1]


def test_a_group_in_the_file(tmp_path: Path) -> None:
    cache = read(tmp_path, file="lanes: 5\ncache:\n  enable: no\n  max_size: 1T\n").cache
    assert (cache.enable, cache.max_size) == (False, Limit(1 << 40, False))


def test_a_group_whose_lines_are_all_comments(tmp_path: Path) -> None:
    assert read(tmp_path, file="lanes: 3\ncache:\n#  enable: no\n") == read(tmp_path, file="lanes: 3")


def test_without_datastores_only_the_front_ends_places_count(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("idle_exit: 60\n")
    settings = Settings.of({"FASTCOPY_DAEMON": "no"}, tmp_path / "f")
    assert (settings.daemon, settings.idle_exit) == (False, 60)


# --- the stock attributes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "name", "value"),
    [
        ({"CACHE_ENABLE": "YES"}, "cache.enable", True),
        ({"CACHE_ENABLE": "yes"}, "cache.enable", True),
        ({"CACHE_ENABLE": "NO"}, "cache.enable", False),
        ({"CACHE_ENABLE": "true"}, "cache.enable", False),  # as the stock driver has it
        ({}, "cache.enable", True),
        ({"CACHE_MAX_SIZE": "10"}, "cache.max_size", Limit(10, True)),
        ({"CACHE_MAX_SIZE": " 10 "}, "cache.max_size", Limit(10, True)),
        ({"CACHE_MAX_SIZE": ""}, "cache.max_size", Limit(80, True)),
        ({"CACHE_MIN_AGE": "900"}, "cache.min_age", 900),
        ({"CACHE_UPSTREAMS": "a,b", "CACHE_NONSENSE": "x"}, "cache.min_age", 0),
    ],
)
def test_stock_attributes_mean_what_they_meant(
    tmp_path: Path, attributes: Mapping[str, str], name: str, value: Any
) -> None:
    assert of(read(tmp_path, image=attributes), name) == value


def test_stock_attributes_count_in_the_image_datastore_only(tmp_path: Path) -> None:
    assert read(tmp_path, system={"CACHE_ENABLE": "NO", "CACHE_MAX_SIZE": "nonsense"}) == Settings.of({})


def test_a_stock_attribute_is_not_looked_at_where_ours_is(tmp_path: Path) -> None:
    stock = {"CACHE_ENABLE": "NO", "CACHE_MAX_SIZE": "nonsense", "CACHE_MIN_AGE": "1"}
    cache = read(tmp_path, system={"FASTCOPY_CACHE_MAX_SIZE": "4G"}, image=stock).cache
    assert (cache.enable, cache.max_size, cache.min_age) == (False, Limit(4 << 30, False), 1)
    ours = {"FASTCOPY_CACHE_MAX_SIZE": "4G"}
    assert read(tmp_path, system=ours, image={**stock, "FASTCOPY_CACHE_ENABLE": "yes"}).cache.enable


# --- mistakes ----------------------------------------------------------------------------------------------------

ENVIRONMENT = "the environment (see tmrc)"
LANES = "it must be a number from 1 to 16"


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [
        ({"environment": {"FASTCOPY_LANES": "99"}}, f"FASTCOPY_LANES is '99' in {ENVIRONMENT}; {LANES}"),
        ({"system": {"FASTCOPY_LANES": "99"}}, f"FASTCOPY_LANES is '99' in datastore 0; {LANES}"),
        ({"image": {"FASTCOPY_LANES": ""}}, f"FASTCOPY_LANES is '' in datastore 1; {LANES}"),
        ({"file": "\nlanes: 99"}, f"lanes is '99' in FILE, line 2; {LANES}"),
        ({"file": "lanes:"}, f"lanes is '' in FILE, line 1; {LANES}"),
        ({"environment": {"FASTCOPY_LANES": "\n" * 200}},
         f"FASTCOPY_LANES is {chr(10) * 80!r} in {ENVIRONMENT}; {LANES}"),
        ({"image": {"CACHE_MAX_SIZE": "20G"}},
         "CACHE_MAX_SIZE is '20G' in datastore 1; it must be a number from 0 to 100, percent of the file system"),
        ({"image": {"CACHE_MIN_AGE": "-1"}},
         "CACHE_MIN_AGE is '-1' in datastore 1; it must be a number of seconds from 0 to 315360000"),
        ({"file": "cache:\n  max_size: 80"},
         "cache.max_size is '80' in FILE, line 2; "
         "it must be 0% to 100%, or bytes with a suffix K, M, G or T (at least 1M, or 0)"),
        ({"file": "lane: 2"}, "'lane' in FILE, line 1 is no setting of fastcopy; the nearest is lanes"),
        ({"file": "max_size: 1G"},
         "'max_size' in FILE, line 1 is no setting of fastcopy; the nearest is cache.max_size"),
        ({"file": "cache: 4"}, "'cache' in FILE, line 1 is no setting of fastcopy; the nearest is cache.enable"),
        ({"file": "FASTCOPY_CLONE: copy"},
         "'FASTCOPY_CLONE' in FILE, line 1 is no setting of fastcopy; the nearest is clone"),
        ({"file": f"{'x' * 900}: 1"}, f"'{'x' * 80}' in FILE, line 1 is no setting"),
        ({"environment": {"FASTCOPY_LANE": "2"}},
         f"'FASTCOPY_LANE' in {ENVIRONMENT} is no setting of fastcopy; the nearest is FASTCOPY_LANES"),
        ({"environment": {"FASTCOPY_CACHE": "no"}},
         f"'FASTCOPY_CACHE' in {ENVIRONMENT} is no setting of fastcopy; the nearest is FASTCOPY_CACHE_ENABLE"),
        ({"system": {"FASTCOPY_CACHE_SIZE": "2"}},
         "'FASTCOPY_CACHE_SIZE' in datastore 0 is no setting of fastcopy; the nearest is FASTCOPY_CACHE_MAX_SIZE"),
        ({"system": {"FASTCOPY_DEBUG": "1"}}, "'FASTCOPY_DEBUG' in datastore 0 is no setting of fastcopy"),
        ({"system": {"FASTCOPY_DAEMON": "no"}},
         "FASTCOPY_DAEMON in datastore 0 is a setting of the whole front-end: set daemon in fastcopy.yaml"),
        ({"image": {"FASTCOPY_CLONE": "copy"}},
         "FASTCOPY_CLONE in datastore 1 is a setting of hosts: set it in their system datastore"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(tmp_path: Path, contents: Dict[str, Any], sentence: str) -> None:
    with pytest.raises(Refused) as caught:
        read(tmp_path, **contents)
    said = str(caught.value).replace(str(tmp_path / "fastcopy.yaml"), "FILE")
    assert said.startswith(sentence)
    assert "\n" not in said


def test_a_mistake_shows_also_where_another_place_has_the_last_word(tmp_path: Path) -> None:
    good = {"FASTCOPY_LANES": "3"}
    with pytest.raises(Refused, match="datastore 0"):
        read(tmp_path, environment=good, system={"FASTCOPY_LANES": "99"})
    with pytest.raises(Refused, match="datastore 1"):
        read(tmp_path, system=good, image={"FASTCOPY_LANES": "99"})
    with pytest.raises(Refused, match="line 1"):
        read(tmp_path, system=good, file="lanes: 99")


@pytest.mark.parametrize("setting", TABLE, ids=lambda setting: setting.name)
def test_every_setting_refuses_nonsense_and_says_what_is_allowed(tmp_path: Path, setting: Setting) -> None:
    with pytest.raises(Refused) as caught:
        read(tmp_path, {setting.attribute: "./nonsense"})
    assert f"{setting.attribute} is './nonsense'" in str(caught.value)
    assert str(caught.value).endswith(f"it must be {setting.kind.allowed}")


def test_names_that_are_no_settings() -> None:
    environ = {"FASTCOPY_DEBUG": "yes", "FASTCOPY_OPENNEBULA": "/x", "FASTCOPY_MIRROR": "x", "FASTCOPY_UNSHARED": "yes"}
    assert Settings.of({**environ, "CACHE_ENABLE": "NO", "fastcopy_lanes": "x"}) == Settings.of({})


@given(st.dictionaries(st.sampled_from([s.attribute for s in TABLE] + ["FASTCOPY_X"]), st.text(max_size=8)))
def test_any_attributes_are_read_or_refused(attributes: Dict[str, str]) -> None:
    try:
        Configuration({}, {}).settings(Datastore(0, "/d", True, attributes))
    except Refused as error:
        assert "datastore 0" in str(error)


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "many", str(MAX_LANES + 1), "²", " 2"])
def test_unusable_lanes(text: str) -> None:
    with pytest.raises(Refused, match="FASTCOPY_LANES"):
        Settings.of({"FASTCOPY_LANES": text})
