"""oned's answers, and what is made of answers that are none.  oned is played by `FakeOned` on loopback."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Callable, Iterator, List, Mapping

import pytest

from tm_fastcopy.core.errors import FastcopyError, Refused
from tm_fastcopy.frontend import oned as module
from tm_fastcopy.frontend.oned import Datastore, Disk, Oned

from .fake_oned import Answer, FakeOned

Serve = Callable[..., Oned]


@pytest.fixture
def servers() -> Iterator[List[FakeOned]]:
    made: List[FakeOned] = []
    yield made
    for server in made:
        server.close()


@pytest.fixture
def serve(servers: List[FakeOned]) -> Serve:
    """An oned that gives this answer."""

    def work(answer: Answer, silent: bool = False) -> Oned:
        servers.append(FakeOned(answer, silent))
        return Oned(servers[-1].endpoint, "oneadmin:secret")

    return work


def vm(inner: str) -> Answer:
    return (True, f"<VM><ID>42</ID>{inner}</VM>", 0)


# --- what oned says ----------------------------------------------------------------------------------------------


def test_a_vm(serve: Serve, servers: List[FakeOned]) -> None:
    found = serve(
        vm(
            "<LCM_STATE>60</LCM_STATE>"
            "<HISTORY_RECORDS><HISTORY><SEQ>3</SEQ><DS_ID>100</DS_ID></HISTORY>"
            "<HISTORY><SEQ>0</SEQ><DS_ID>7</DS_ID></HISTORY>"
            "<HISTORY><SEQ>2</SEQ><DS_ID>101</DS_ID></HISTORY></HISTORY_RECORDS>"
            "<TEMPLATE><DISK><DISK_ID>0</DISK_ID><SIZE>4096</SIZE><ORIGINAL_SIZE>2048</ORIGINAL_SIZE>"
            "<FORMAT>QCOW2</FORMAT></DISK><DISK><DISK_ID>1</DISK_ID><SPARSE>no</SPARSE></DISK></TEMPLATE>"
        )
    ).vm(42)
    assert (found.id, found.seq, found.lcm_state, found.store, found.before) == (42, 3, 60, 100, 101)
    assert found.disks == {0: Disk(0, 4096, 2048, "qcow2", True), 1: Disk(1, None, None, "raw", False)}
    assert servers[0].calls == [("one.vm.info", ("oneadmin:secret", 42, False))]


def test_a_vm_with_nothing(serve: Serve) -> None:
    found = serve(vm("")).vm(42)
    assert (found.lcm_state, found.store, found.before) == (0, None, None)
    assert (found.seq, found.disks) == (0, {})


@pytest.mark.parametrize("size", ["", "-1", "1.5", "many", "²", "1 0"])
def test_a_number_that_is_none_is_not_given(serve: Serve, size: str) -> None:
    found = serve(vm(f"<TEMPLATE><DISK><DISK_ID>0</DISK_ID><SIZE>{size}</SIZE></DISK></TEMPLATE>")).vm(42)
    assert found.disks[0].size is None


def test_datastores(serve: Serve) -> None:
    text = (
        "<DATASTORE_POOL><DATASTORE><ID>1</ID><BASE_PATH>/d//1/</BASE_PATH><TYPE>0</TYPE></DATASTORE>"
        "<DATASTORE><ID>100</ID><BASE_PATH>/d/100</BASE_PATH><TYPE>1</TYPE></DATASTORE></DATASTORE_POOL>"
    )
    assert serve((True, text, 0)).datastores() == {
        1: Datastore(1, "/d/1", False),
        100: Datastore(100, "/d/100", True),
    }


def attributes(serve: Serve, template: str) -> Mapping[str, str]:
    text = f"<DATASTORE_POOL><DATASTORE><ID>1</ID><TEMPLATE>{template}</TEMPLATE></DATASTORE></DATASTORE_POOL>"
    return serve((True, text, 0)).datastores()[1].attributes


def test_attributes_of_a_datastore(serve: Serve) -> None:
    text = "<TM_MAD><![CDATA[fastcopy]]></TM_MAD><note>o'neil</note><FASTCOPY_LANES>4</FASTCOPY_LANES><EMPTY/>"
    assert attributes(serve, text) == {"TM_MAD": "fastcopy", "NOTE": "o'neil", "FASTCOPY_LANES": "4", "EMPTY": ""}


def test_the_first_of_equal_attributes_counts_and_a_vector_has_no_text(serve: Serve) -> None:
    assert attributes(serve, "<A>1</A><A>2</A><V>text<X>1</X></V>") == {"A": "1", "V": ""}


def test_attributes_are_bounded(serve: Serve) -> None:
    long = "N" * 65
    found = attributes(serve, f"<A>{'x' * 100_000}</A><{long}>1</{long}><_A>1</_A><A-B>1</A-B>")
    assert found == {"A": "x" * 4097}


# --- what oned does not say --------------------------------------------------------------------------------------


def test_an_unknown_vm(serve: Serve) -> None:
    with pytest.raises(FastcopyError, match=r"oned refuses one\.vm\.info: .*Error getting virtual machine \[42\]"):
        serve((False, "[one.vm.info] Error getting virtual machine [42].", 1024)).vm(42)


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}/RPC2"
        with pytest.raises(FastcopyError, match=rf"oned does not answer at {endpoint} \(Connection refused\)"):
            Oned(endpoint, "x").vm(42)


def test_a_silent_oned(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TIMEOUT", 0.1)
    with pytest.raises(FastcopyError, match=r"oned does not answer .*timed out"):
        serve((True, "<VM/>", 0), silent=True).vm(42)


@pytest.mark.parametrize("status", [401, 404, 500])
def test_an_http_error(serve: Serve, status: int) -> None:
    with pytest.raises(FastcopyError, match=f"oned refuses one.vm.info: .*{status}"):
        serve(status).vm(42)


XMLRPC = "<?xml version='1.0'?><methodResponse><params><param><value>%s</value></param></params></methodResponse>"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage",
        b"<html><body>It works!</body></html>",
        b"<methodResponse>",
        b"\xff\xfe\x00",
        (XMLRPC % "text").encode(),
        (XMLRPC % "<int>7</int>").encode(),
        (XMLRPC % "<int>many</int>").encode(),
        (XMLRPC % "<array><data></data></array>").encode(),
        (True,),
        (True, 7, 0),
        (True, "", 0),
        (True, "no xml", 0),
        (True, "<VM>", 0),
        (False,),
    ],
    ids=repr,
)
def test_garbage_is_one_sentence(serve: Serve, answer: Answer) -> None:
    with pytest.raises(FastcopyError, match=r"one\.vm\.info|does not answer") as caught:
        serve(answer).vm(42)
    assert "secret" not in str(caught.value)


# --- where it is -------------------------------------------------------------------------------------------------


def test_credentials_are_read(tmp_path: Path) -> None:
    (tmp_path / "auth").write_text("oneadmin:secret\n")
    assert isinstance(Oned.of({}, tmp_path / "auth"), Oned)


def test_credentials_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(FastcopyError, match=f"credentials for oned cannot be read: {tmp_path}/auth: No such file"):
        Oned.of({}, tmp_path / "auth")


@pytest.mark.parametrize("endpoint", ["", "file:///etc/passwd", "localhost:2633", "unix:/x"])
def test_an_address_that_is_none_is_refused(tmp_path: Path, endpoint: str) -> None:
    with pytest.raises(Refused, match="ONE_XMLRPC"):
        Oned.of({"ONE_XMLRPC": endpoint}, tmp_path / "auth")


GOLDEN = Path(__file__).parents[2] / "golden" / "oned"


# --- hosts -------------------------------------------------------------------------------------------------------


def test_hosts_are_read(serve: Serve) -> None:
    found = serve((True, (GOLDEN / "hostpool.xml").read_text(), 0)).hosts()
    assert [(host.id, host.name, host.state, host.cluster, host.driver) for host in found] == [
        (0, "host1", 2, 0, "kvm"),
        (1, "host2", 3, 0, "kvm"),
    ]


def test_images_are_read(serve: Serve) -> None:
    found = serve((True, (GOLDEN / "imagepool.xml").read_text(), 0)).images()
    assert [(image.id, image.name, image.source) for image in found] == [
        (7, "debian", "/srv/one/datastores/1/debian"),
        (8, "data", "/srv/one/datastores/1/data"),
    ]


def test_datastores_have_a_name_a_driver_and_clusters(serve: Serve) -> None:
    found = serve((True, (GOLDEN / "datastorepool.xml").read_text(), 0)).datastores()
    assert {(store.name, store.tm_mad, store.clusters) for store in found.values()} >= {
        ("default", "fastcopy", frozenset({0}))
    }
