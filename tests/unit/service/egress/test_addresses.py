"""Which addresses are public: every special range of IANA, and every form that carries IPv4."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.egress.addresses import AllowedNetworks, is_public

PUBLIC = ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450::1"]

FORBIDDEN = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",  # a carrier's
    "100.100.100.200",  # a cloud's metadata
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",  # a cloud's metadata
    "169.254.0.1",
    "169.254.169.254",  # most clouds' metadata
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.192",  # a cloud's metadata
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",  # IPv4-compatible
    "::8.8.8.8",
    "::ffff:127.0.0.1",  # IPv4-mapped
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:8.8.8.8",
    "::ffff:0:127.0.0.1",  # IPv4-translated
    "64:ff9b::7f00:1",  # NAT64
    "64:ff9b::169.254.169.254",
    "64:ff9b::8.8.8.8",
    "64:ff9b:1::10.0.0.1",
    "100::1",  # discarded
    "2001::1",  # Teredo
    "2001:0:7f00:1::1",
    "2001:2::1",  # benchmarks
    "2001:10::1",
    "2001:20::1",  # ORCHID
    "2001:db8::1",
    "2002:7f00:1::1",  # 6to4
    "2002:a9fe:a9fe::1",
    "2606:4700::5efe:10.0.0.1",  # ISATAP
    "2606:4700::200:5efe:192.168.0.1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00::1",
    "fd00:ec2::254",  # a cloud's metadata
    "fd20:ce::254",  # likewise
    "fe80::1",
    "fe80::1%eth0",
    "fe80::5efe:10.0.0.1",
    "2606:4700::1%eth0",  # scoped
    "fec0::1",  # site-local
    "ff02::1",
    "ff0e::1",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
]


@pytest.mark.parametrize("text", PUBLIC)
def test_public(text: str) -> None:
    assert is_public(ip_address(text))


@pytest.mark.parametrize("text", FORBIDDEN)
def test_forbidden(text: str) -> None:
    assert not is_public(ip_address(text))
    assert ip_address(text) not in AllowedNetworks()


@given(st.ip_addresses(v=4) | st.ip_addresses(v=6) | st.ip_addresses(network="2000::/3"))
def test_python_knows_no_other_special_addresses(address: IPv4Address | IPv6Address) -> None:
    """Its own tables are another reading of IANA's registries."""
    if is_public(address):
        assert address.is_global
        assert not address.is_multicast
        assert not address.is_reserved


def test_an_allowed_network_is_allowed_and_no_other() -> None:
    allowed = AllowedNetworks([ip_network("10.1.0.0/16"), ip_network("fd12::/32")])
    assert ip_address("10.1.2.3") in allowed
    assert ip_address("fd12::1") in allowed
    assert ip_address("8.8.8.8") in allowed
    for text in ("10.2.0.1", "fd13::1", "127.0.0.1", "::ffff:10.1.2.3"):
        assert ip_address(text) not in allowed
    assert not allowed.only_public
