"""Settings: what an administrator may set.  `TABLE` is the only list of them.

Validation, errors, docs/CONFIGURATION.md and the default fastcopy.yaml (`reference`) come from the table.  A setting is
taken from the first of these places that has it:

1. the environment of the call, `FASTCOPY_*`;
2. `FASTCOPY_*` of the VM's system datastore, then of the image datastore;
3. the attribute of the stock `local` driver, in the image datastore, where that driver has it;
4. `fastcopy.yaml`;
5. its default.

What is written is checked in every place, also where another place has the last word; the stock attributes only where
they are used.
"""

from __future__ import annotations

from collections import ChainMap
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Tuple

from ..core.errors import Refused
from . import configfile
from .kinds import Bytes, Choice, Kind, Limit, Number, Share, StockPercent, StockSwitch, Switch

if TYPE_CHECKING:
    from .oned import Datastore

PREFIX = "FASTCOPY_"
FILE = "fastcopy.yaml"
MAX_LANES = 16  # sshd's MaxStartups lets ten logins wait before it drops some
MAX_TRANSFERS = 1000  # one_tm's own slots are rarely more than a hundred
MAX_HOST_TRANSFERS = 8  # as many conversations as a host has at once (`agents.MOST`)
MAX_AGE = 10 * 365 * 86400  # seconds; longer is a mistake
_MIB = 1 << 20

# Who may say it: the front-end as a whole, the system datastore, or either datastore of a transfer.
FRONT_END, SYSTEM, EITHER = "front-end", "system datastore", "system or image datastore"

# Names in the environment that are no settings: main's, and those of the tests.  (FASTCOPY_CACHE of tests/python39.sh
# is not among them: it never comes here, and an administrator who writes it means something else.)
_OTHER_NAMES = ("FASTCOPY_DEBUG", "FASTCOPY_OPENNEBULA", "FASTCOPY_MIRROR", "FASTCOPY_UNSHARED")
_SHOWN = 80  # characters of what somebody wrote that an error repeats


@dataclass(frozen=True)
class CacheSettings:
    """The cache of a host: sizes as `Limit`, *min_age* in seconds, *scrub_rate* in bytes per second."""

    enable: bool
    max_size: Limit
    reserve: Limit
    min_age: int
    scrub_rate: int


@dataclass(frozen=True)
class Settings:
    """All settings of a call, with the names of `TABLE`; *idle_exit* in seconds, limits of bandwidth in bytes a second.
    """

    lanes: int
    clone: str
    verify: str
    compression: str
    max_transfers: int
    max_transfers_per_host: int
    bwlimit: int
    bwlimit_host: int
    daemon: bool
    idle_exit: int
    cache: CacheSettings

    @classmethod
    def of(cls, environ: Mapping[str, str], file: Optional[Path] = None) -> Settings:
        """What environment and file say, without any datastore; `Refused` for what cannot be used."""
        return Configuration.read(environ, file).settings()


class Stock(NamedTuple):
    """The attribute of the stock `local` driver that means the same, and how it is read."""

    attribute: str
    kind: Kind


class Setting(NamedTuple):
    """A row of the table.  *default* is the text that one would write; *meaning* is a sentence."""

    name: str
    kind: Kind
    default: str
    owner: str
    meaning: str
    stock: Optional[Stock] = None

    @property
    def attribute(self) -> str:
        """Its name in a datastore and in the environment."""
        return PREFIX + self.name.replace(".", "_").upper()


TABLE = (
    Setting("lanes", Number(1, MAX_LANES), "2", EITHER, "How many ssh streams one transfer may use."),
    Setting(
        "clone", Choice("auto", "reflink", "copy"), "auto", SYSTEM,
        "What a disk is of a host's cached image: a reflink where the file system can, a reflink or an error, or "
        "always a copy.",
    ),
    Setting(
        "verify", Choice("scrubbed", "always"), "scrubbed", SYSTEM,
        "Whether a cached image is trusted as it was last scrubbed, or read and checked before every clone.",
    ),
    Setting(
        "compression", Choice("auto", "zstd", "none"), "auto", EITHER,
        "Whether chunks are compressed on the way: where it makes the transfer faster, always, or never.",
    ),
    Setting(
        "max_transfers", Number(1, MAX_TRANSFERS), "15", FRONT_END,
        "How many transfers the daemon runs at once; more wait.",
    ),
    Setting(
        "max_transfers_per_host", Number(1, MAX_HOST_TRANSFERS), "4", FRONT_END,
        "How many transfers the daemon runs at once with one host.",
    ),
    Setting(
        "bwlimit", Bytes(64 * 1024), "0", FRONT_END,
        "How many bytes per second the daemon exchanges with all hosts together; with 0 as many as it can.",
    ),
    Setting(
        "bwlimit_host", Bytes(64 * 1024), "0", SYSTEM,
        "How many bytes per second the daemon exchanges with one host; with 0 as many as it can.",
    ),
    Setting("daemon", Switch(), "yes", FRONT_END, "Whether calls go through the daemon, or each runs by itself."),
    Setting(
        "idle_exit", Number(10, 86400, "seconds"), "600", FRONT_END,
        "How many seconds the daemon lives without work.",
    ),
    Setting(
        "cache.enable", Switch(), "yes", EITHER, "Whether hosts keep images for the next VM.",
        Stock("CACHE_ENABLE", StockSwitch()),
    ),
    Setting(
        "cache.max_size", Share(_MIB), "80%", SYSTEM,
        "How much of its file system the cache may fill; with 0 it keeps nothing.",
        Stock("CACHE_MAX_SIZE", StockPercent()),
    ),
    Setting(
        "cache.reserve", Share(_MIB), "5%", SYSTEM,
        "How much of its file system the cache leaves free, whatever cache.max_size allows.",
    ),
    Setting(
        "cache.min_age", Number(0, MAX_AGE, "seconds"), "0", SYSTEM,
        "How many seconds an image is kept after its last use, even if the room is needed for another image.",
        Stock("CACHE_MIN_AGE", Number(0, MAX_AGE, "seconds")),
    ),
    Setting(
        "cache.scrub_rate", Bytes(64 * 1024), "20M", SYSTEM,
        "How many bytes per second a host reads to check cached images; with 0 it does not.",
    ),
)  # fmt: skip

_BY_NAME = {setting.name: setting for setting in TABLE}
_BY_ATTRIBUTE = {setting.attribute: setting for setting in TABLE}
_DEFAULTS = {setting.name: setting.kind.read(setting.default) for setting in TABLE}
_GROUPS = {setting.name.partition(".")[0] for setting in TABLE if "." in setting.name}

Values = Dict[str, Any]
"""Values by the setting's name."""


class Configuration:
    """What the environment of a call and the file say; datastores come to it with each transfer."""

    def __init__(self, environment: Values, file: Values) -> None:
        self._environment, self._file = environment, file

    @classmethod
    def read(cls, environ: Mapping[str, str], file: Optional[Path] = None) -> Configuration:
        """Read both; `Refused` for what cannot be used."""
        return cls(_environment(environ), _file(file) if file else {})

    def settings(self, system: Optional[Datastore] = None, image: Optional[Datastore] = None) -> Settings:
        """The settings of a transfer between these datastores; `Refused` for what cannot be used."""
        own = [_attributes(store) for store in (system, image) if store]
        stock = _stock(image, ChainMap(*own)) if image else {}
        layers: List[Values] = [self._environment, *own, stock, self._file, _DEFAULTS]
        values = ChainMap(*layers)
        cache = CacheSettings(**{field.name: values[f"cache.{field.name}"] for field in fields(CacheSettings)})
        return Settings(
            cache=cache, **{field.name: values[field.name] for field in fields(Settings) if field.name != "cache"}
        )


def _environment(environ: Mapping[str, str]) -> Values:
    place = "the environment (see tmrc)"
    found: Values = {}
    for name, text in environ.items():
        if name.startswith(PREFIX) and name not in _OTHER_NAMES:
            setting = _known(name, _BY_ATTRIBUTE, place)
            found[setting.name] = _value(setting.kind, name, text, place)
    return found


def _attributes(store: Datastore) -> Values:
    """What a datastore says by our attributes."""
    place = f"datastore {store.id}"
    found: Values = {}
    for name, text in store.attributes.items():
        if not name.startswith(PREFIX):
            continue
        setting = _known(name, _BY_ATTRIBUTE, place)
        if setting.owner == FRONT_END:
            raise Refused(f"{name} in {place} is a setting of the whole front-end: set {setting.name} in {FILE}")
        if setting.owner == SYSTEM and not store.system:
            raise Refused(f"{name} in {place} is a setting of hosts: set it in their system datastore")
        found[setting.name] = _value(setting.kind, name, text, place)
    return found


def _stock(store: Datastore, own: Mapping[str, Any]) -> Values:
    """What an image datastore says by the stock driver's attributes, where ours (*own*) say nothing."""
    found: Values = {}
    for setting in TABLE:
        if setting.stock and setting.name not in own:
            text = store.attributes.get(setting.stock.attribute, "").strip()
            if text:
                place = f"datastore {store.id}"
                found[setting.name] = _value(setting.stock.kind, setting.stock.attribute, text, place)
    return found


def _file(path: Path) -> Values:
    found: Values = {}
    for name, (text, line) in configfile.read(path).items():
        if name in _GROUPS and not text:
            continue  # a group whose settings are all commented out
        place = f"{path}, line {line}"
        setting = _known(name, _BY_NAME, place)
        found[setting.name] = _value(setting.kind, name, text, place)
    return found


def _known(name: str, known: Mapping[str, Setting], place: str) -> Setting:
    if name in known:
        return known[name]
    raise Refused(f"{name[:_SHOWN]!r} in {place} is no setting of fastcopy; the nearest is {_nearest(name, known)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    import difflib

    names: Tuple[str, ...] = tuple(known)
    alike = name.upper() if names[0].isupper() else name.lower()
    return difflib.get_close_matches(alike[:_SHOWN], names, n=1, cutoff=0.0)[0]


def _value(kind: Kind, name: str, text: str, place: str) -> Any:
    try:
        return kind.read(text)
    except ValueError as error:
        raise Refused(f"{name} is {text[:_SHOWN]!r} in {place}; it must be {kind.allowed}") from error
