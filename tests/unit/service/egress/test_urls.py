"""URLs that no server of a stranger's may make this one call, in all their spellings."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from service.egress.addresses import AllowedNetworks
from service.egress.urls import UrlRules

RULES = UrlRules(AllowedNetworks())

ALLOWED = [
    "https://example.com",
    "https://example.com/path?query=1&more=%20",
    "https://EXAMPLE.com:8443/",
    "https://xn--bcher-kva.example/",
    "https://8.8.8.8/",
    "https://8.8.8.8:1/",
    "https://[2606:4700::1111]:443/hook",
    "https://a-1.b2.example.org/",
]

FORBIDDEN = [
    # The scheme.
    "http://example.com/",
    "ftp://example.com/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:70/_",
    "//example.com/",
    "example.com",
    "https:/example.com",
    "https:///path",
    "javascript:alert(1)",
    # User, password, fragment, port.
    "https://user@example.com/",
    "https://user:password@example.com/",
    "https://example.com@127.0.0.1/",
    "https://example.com#@127.0.0.1/",
    "https://example.com/#fragment",
    "https://example.com:0/",
    "https://example.com:/",
    "https://example.com:65536/",
    "https://example.com:-1/",
    "https://example.com:https/",
    # IPv4, in every spelling that a resolver takes.
    "https://127.0.0.1/",
    "https://127.0.0.1:8265/api/jobs/",
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0x7F.0.0.1/",
    "https://127.1/",
    "https://127.0.1/",
    "https://0177.0.0.1/",
    "https://017700000001/",
    "https://127.0.0.01/",
    "https://0/",
    "https://0x/",
    "https://134744072/",  # 8.8.8.8
    "https://8.8.2056/",
    "https://256.1.1.1/",
    "https://1.2.3.4.5/",
    "https://127.0.0.1./",
    "https://example.0x7f/",
    "https://10.0.0.1/",
    "https://169.254.169.254/latest/meta-data/",
    "https://100.100.100.200/",
    "https://168.63.129.16/",
    "https://0.0.0.0/",
    "https://224.0.0.1/",
    "https://255.255.255.255/",
    # IPv6.
    "https://[::1]/",
    "https://[::]/",
    "https://[0:0:0:0:0:0:0:1]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/",
    "https://[::127.0.0.1]/",
    "https://[64:ff9b::127.0.0.1]/",
    "https://[64:ff9b:1::a00:1]/",
    "https://[2002:7f00:1::]/",
    "https://[2001:0:7f00:1::]/",
    "https://[fe80::1]/",
    "https://[fe80::1%25eth0]/",
    "https://[fe80::1%eth0]/",
    "https://[2606:4700::1%25lo]/",
    "https://[fd00:ec2::254]/",
    "https://[fec0::1]/",
    "https://[ff02::1]/",
    "https://[127.0.0.1]/",
    "https://[v1.localhost]/",
    "https://[::1/",
    "https://::1/",
    # Names.
    "https://localhost/",
    "https://LOCALHOST/",
    "https://localhost./",
    "https://api.localhost/",
    "https://localhost.localdomain/",
    "https://printer.local/",
    "https://metadata.google.internal/computeMetadata/v1/",
    "https://kubernetes.default.svc.cluster.local/",
    "https://router.home.arpa/",
    "https://wiki.corp/",
    "https://example.com./",
    "https://example..com/",
    "https://.example.com/",
    "https://-example.com/",
    "https://exa_mple.com/",
    "https://127%2e0%2e0%2e1/",
    "https://%31%32%37.0.0.1/",
    "https://local%68ost/",
    f"https://{'a.' * 127}com/",
    f"https://{'a' * 64}.com/",
    # Characters.
    "https://exam\u00adple.com/",
    "https://\uff4c\uff4f\uff43\uff41\uff4c\uff48\uff4f\uff53\uff54/",
    "https://127\u30020\u30020\u30021/",
    "https://\u2460\u2461\u2466.0.0.1/",
    "https://b\u00fccher.example/",
    "https://example.com\\@127.0.0.1/",
    "https://example.com\t.127.0.0.1/",
    "https://example.com/\r\nHost: 127.0.0.1",
    "https://example.com /",
    " https://example.com/",
    "https://example.com/\0",
    "https://example.com/\ud800",
    "",
    "https://",
    "https://example.com/" + "x" * 2048,
]


@pytest.mark.parametrize("url", ALLOWED)
def test_allowed(url: str) -> None:
    assert RULES.objection(url) is None


@pytest.mark.parametrize("url", FORBIDDEN, ids=ascii)
def test_forbidden(url: str) -> None:
    assert RULES.objection(url)


def test_plain_http_needs_the_setting() -> None:
    rules = UrlRules(AllowedNetworks(), allow_http=True)
    assert rules.objection("http://example.com/") is None
    assert rules.objection("https://example.com/") is None
    assert rules.objection("ftp://example.com/")
    assert rules.objection("http://127.0.0.1/")


def test_an_allowed_network_opens_its_addresses_and_private_names() -> None:
    rules = UrlRules(AllowedNetworks([ip_network("10.0.0.0/8")]))
    assert rules.objection("https://10.1.2.3:9000/") is None
    assert rules.objection("https://ci.internal/") is None  # checked when it is resolved
    assert rules.objection("https://127.0.0.1/")
