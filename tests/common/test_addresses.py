"""Addresses: what is one, and which of them stay on this machine."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa_common.addresses import Address, loopback_address, parse_address
from hansa_common.errors import UsageError

ports = st.integers(1, 65_535)
hosts = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]{2,5})?", fullmatch=True),
)


@settings(max_examples=40)
@given(hosts, ports)
def test_address_is_read_as_it_is_written(host, port):
    assert parse_address(str(Address(host, port))) == Address(host, port)


def test_ipv6_host_stands_in_brackets():
    assert str(Address("::1", 8000)) == "[::1]:8000"
    assert parse_address("[::1]:8000") == Address("::1", 8000)


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "8000", ":8000", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:-1",
        "127.0.0.1:x", "127.0.0.1:80x", "127.0.0.1: 80", " 127.0.0.1:80", "127.0.0.1:80\n", "127.0.0.1:8_0",
        "127.0.0.1:٨٠", "127.0.0.1:²", "127.0.0.1:" + "9" * 5000, "http://127.0.0.1:8000", "127.0.0.1:8000/",
        "user@host:80", "a b:80", "::1:8000", "[::1:8000", "::1]:8000", "[]:8000", "[::1]", "[127.0.0.1]:80",
        "[[::1]]:8000", "host:80:80", "host\0:80",
    ],
    ids=lambda text: repr(text[:30]),
)  # fmt: skip
def test_text_that_is_no_address_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match=r"is not an address; give host:port, for example 127\.0\.0\.1:8000"):
        parse_address(text)


@given(st.ip_addresses(v=4), ports)
def test_ipv4_address_stays_here_exactly_in_the_block_127(ip, port):
    address = Address(str(ip), port)
    assert address.is_loopback == (ip in ipaddress.ip_network("127.0.0.0/8"))


@given(st.ip_addresses(v=4, network="127.0.0.0/8"), ports)
def test_every_loopback_address_is_taken(ip, port):
    assert loopback_address(f"{ip}:{port}") == Address(str(ip), port)


@pytest.mark.parametrize("text", ["localhost:8000", "[::1]:8000", "127.0.0.1:1", "127.0.0.1:65535"])
def test_this_machine_is_taken(text):
    assert str(loopback_address(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0:8000", "[::]:8000", "10.0.0.1:8000", "192.168.0.1:8000", "[2001:db8::1]:8000", "[fe80::1]:8000",
        # Names may lead anywhere, and resolvers read short and odd numbers each in their own way.
        "example.com:8000", "localhost.example.com:8000", "127.0.0.1.example.com:8000", "127.1:8000",
        "2130706433:8000", "0x7f.0.0.1:8000", "127.0.0.01:8000",
    ],
)  # fmt: skip
def test_address_that_others_may_share_is_refused_before_anything_is_sent(text):
    with pytest.raises(UsageError, match=r"not on this machine.*without authentication.*give 127\.0\.0\.1:PORT"):
        loopback_address(text)
