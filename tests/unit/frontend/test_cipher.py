"""The order of ciphers that a lane asks for."""

from __future__ import annotations

import pytest

from tm_fastcopy.frontend.process_link import prefer_fast_cipher

GCM128, GCM256, CHACHA = "aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com"


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        (f"{CHACHA},aes128-ctr,{GCM128},{GCM256}", f"{GCM128},{GCM256},{CHACHA},aes128-ctr"),
        (f"{CHACHA},{GCM256}", f"{GCM256},{CHACHA}"),
        (GCM128, GCM128),
        (CHACHA, ""),  # the administrator allows no fast one
        (f"{CHACHA},aes128-cbc", ""),
    ],
)
def test_aes_comes_first_among_what_is_allowed(allowed: str, expected: str) -> None:
    assert prefer_fast_cipher(f"host h\nciphers {allowed}\nport 22\n", True) == expected


def test_without_aes_in_the_cpu_the_order_stays() -> None:
    assert prefer_fast_cipher(f"ciphers {CHACHA},{GCM128}\n", False) == ""


@pytest.mark.parametrize("options", ["", "port 22\n", "xciphers aes128-gcm@openssh.com\n", "ciphers \n"])
def test_without_a_list_the_order_stays(options: str) -> None:
    assert prefer_fast_cipher(options, True) == ""
