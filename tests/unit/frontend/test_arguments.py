"""Arguments and places: what an entry point is called with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tm_fastcopy.core.errors import Refused
from tm_fastcopy.frontend.arguments import Endpoint, directory_and_name, exactly, number
from tm_fastcopy.frontend.places import Places


@pytest.mark.parametrize(
    ("text", "host", "path"),
    [
        ("host1:/d/42/disk.0", "host1", "/d/42/disk.0"),
        ("/d/42/disk.0", "", "/d/42/disk.0"),
        ("10.0.0.1:/x", "10.0.0.1", "/x"),
        ("[fe80::1%eth0]:/x", "[fe80::1%eth0]", "/x"),
        ("fe80::1:/x", "fe80::1", "/x"),
        ("a.b-c_d:/x:/y", "a.b-c_d", "/x:/y"),
    ],
)
def test_endpoints(text: str, host: str, path: str) -> None:
    assert Endpoint.parse(text) == Endpoint(host, path)


@pytest.mark.parametrize(
    "text",
    ["", "host1", "host1:", "host1:relative", ":/x", "-oProxyCommand=x:/x", "a b:/x", "a;b:/x", "$(x):/x", "a\n:/x"],
)
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(Refused, match="HOST:/PATH"):
        Endpoint.parse(text)


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("42", 42), ("999999999", 999999999)])
def test_numbers(text: str, value: int) -> None:
    assert number(text, "a VM") == value


@pytest.mark.parametrize("text", ["", "-1", "+1", "1.0", " 1", "1\n", "²", "٣", "1234567890", "x"])
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(Refused, match="not the id of a VM"):
        number(text, "a VM")


def test_as_many_arguments_as_names() -> None:
    assert exactly(["a", "b"], "SOURCE DESTINATION") == ["a", "b"]
    for wrong in ([], ["a"], ["a", "b", "c"]):
        with pytest.raises(Refused, match="where 2 are needed: SOURCE DESTINATION"):
            exactly(wrong, "SOURCE DESTINATION")


def test_places_of_the_packages() -> None:
    places = Places.of({"HOME": "/var/lib/one"})
    assert places.state == Path("/var/lib/one/fastcopy")
    assert places.auth == Path("/var/lib/one/.one/one_auth")
    assert places.etc == Path("/etc/one/tm/fastcopy")


def test_places_of_a_self_contained_installation() -> None:
    places = Places.of({"ONE_LOCATION": "/srv/one", "ONE_AUTH": "/etc/auth"})
    assert places.state == Path("/srv/one/var/fastcopy")
    assert places.auth == Path("/etc/auth")
    assert places.etc == Path("/srv/one/etc/tm/fastcopy")
    assert str(places.wheels).startswith("/srv/one/lib/")


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/ds/0/42/disk.0", ("/ds/0/42", "disk.0")),
        ("/ds//0/42/disk.0/", ("/ds/0/42", "disk.0")),
        ("/ds/0/42", ("/ds/0/42", "")),
        ("/ds/0/42/", ("/ds/0/42", "")),
        ("/ds/0/42/kernel", ("/ds/0/42", "kernel")),
        ("/etc", ("/etc", "")),
    ],
)
def test_a_disk_and_its_directory_have_the_same_place(path: str, found: tuple[str, str]) -> None:
    assert directory_and_name(path) == found
