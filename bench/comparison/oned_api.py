"""oned's XML-RPC API, and its documents."""

from __future__ import annotations

import http.client
import xml.etree.ElementTree as ElementTree
import xmlrpc.client
from pathlib import Path
from typing import Any, Dict, Mapping, Protocol
from xml.parsers.expat import ExpatError

_ANSWER = 30.0  # seconds for oned to answer


class CloudError(ValueError):
    """Something about the cloud, or about what was asked of it, in one sentence."""


class Api(Protocol):
    """oned's XML-RPC API."""

    def __call__(self, method: str, *arguments: Any) -> Any:
        """The value of a call. CloudError with oned's text if it fails."""


class OnedApi:
    """The API of the oned that the environment names, with the user's credentials."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.endpoint = environ.get("ONE_XMLRPC", "http://localhost:2633/RPC2")
        if not self.endpoint.startswith(("http://", "https://")):
            raise CloudError(f"ONE_XMLRPC is {self.endpoint!r}, which is no http address")
        home = environ.get("HOME", "/var/lib/one")
        auth = Path(environ.get("ONE_AUTH") or Path(home, ".one/one_auth"))
        try:
            self._credentials = auth.read_text().strip()
        except OSError as error:
            raise CloudError(f"the credentials for oned cannot be read: {auth}: {error.strerror}") from error

    def __call__(self, method: str, *arguments: Any) -> Any:
        """See Api."""
        transport = (_Safe if self.endpoint.startswith("https") else _Plain)()
        try:
            with xmlrpc.client.ServerProxy(self.endpoint, transport=transport, allow_none=True) as proxy:
                answer = getattr(proxy, method)(self._credentials, *arguments)
        except (OSError, http.client.HTTPException) as error:
            raise CloudError(f"oned does not answer at {self.endpoint} ({error}): is ONE_XMLRPC right?") from error
        except (xmlrpc.client.Error, ExpatError, TypeError) as error:
            raise CloudError(f"what answers at {self.endpoint} to {method} is not oned: {error}") from error
        if not isinstance(answer, list) or len(answer) < 2:
            raise CloudError(f"oned answers {method} with something that is no answer")
        if not answer[0]:
            raise CloudError(f"oned refuses {method}: {answer[1]}")
        return answer[1]


class _Plain(xmlrpc.client.Transport):
    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = super().make_connection(host)
        connection.timeout = _ANSWER
        return connection


class _Safe(xmlrpc.client.SafeTransport):
    def make_connection(self, host: Any) -> http.client.HTTPSConnection:
        connection = super().make_connection(host)
        connection.timeout = _ANSWER
        return connection


def parse(document: Any) -> ElementTree.Element:
    """A document that oned has answered with. CloudError where it is none."""
    try:
        return ElementTree.fromstring(str(document))
    except ElementTree.ParseError as error:
        raise CloudError("oned answers with something that is not XML") from error


def by_id(document: Any, tag: str) -> Dict[int, ElementTree.Element]:
    """The elements of a pool, by their ids."""
    return {int(text_of(item, "ID")): item for item in parse(document).iterfind(tag)}


def text_of(item: ElementTree.Element, path: str) -> str:
    """The text of a descendant; empty where there is none."""
    return (item.findtext(path) or "").strip()
