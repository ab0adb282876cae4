"""Which addresses a server may connect to on behalf of a user: public ones, and allowed networks.

Everything that IANA's registries of special-purpose addresses list is refused, and so is every
form of IPv6 that carries an IPv4 address, since a translator may turn it into a private one.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_SPECIAL = tuple(
    ip_network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared by a carrier's customers; a cloud's metadata
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's metadata, on an address that looks public
        "169.254.0.0/16",  # link-local; the metadata of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocols; a cloud's metadata
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved; broadcast
        "2001::/23",  # protocols: Teredo, benchmarks, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which carries an IPv4 address
        "3fff::/20",  # documentation
    )
)

_GLOBAL_UNICAST = ip_network("2000::/3")
"""All of IPv6 that is assigned to public hosts. Outside: loopback, link-local, site-local, unique
local, multicast, NAT64 (64:ff9b::/96 and 64:ff9b:1::/48), IPv4-mapped and IPv4-compatible."""

_ISATAP = (0x00005EFE, 0x02005EFE)
"""The third quarter of an address whose last one is an IPv4 address."""


class AllowedNetworks:
    """Public addresses, and those of `networks`."""

    def __init__(self, networks: Sequence[Network] = ()) -> None:
        self._networks = tuple(networks)

    @property
    def only_public(self) -> bool:
        return not self._networks

    def __contains__(self, address: Address) -> bool:
        return any(address in network for network in self._networks) or is_public(address)


def is_public(address: Address) -> bool:
    """Whether any host of the internet can be reached at this address, and no other."""
    if any(address in network for network in _SPECIAL):
        return False
    if isinstance(address, IPv4Address):
        return True
    return (
        address in _GLOBAL_UNICAST
        and address.scope_id is None
        and (int(address) >> 32) & 0xFFFFFFFF not in _ISATAP
    )


def parsed(text: str) -> Address | None:
    """The address in its usual spelling, without the brackets of a URL; None if it is none."""
    try:
        return ip_address(text)
    except ValueError:
        return None
