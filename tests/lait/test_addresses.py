"""Which addresses are public, beside what Python says of them."""

from __future__ import annotations

import ipaddress
import random

import pytest

from imagebert.lait.addresses import is_public


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "93.184.215.14", "172.32.0.1", "2606:4700:4700::1111"])
def test_public_ones(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "0.1.2.3", "10.1.2.3", "127.0.0.1", "127.255.255.254", "172.16.0.1", "172.31.255.255"),
        *("192.168.1.1", "169.254.169.254", "100.64.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
        *("224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "198.18.0.1", "203.0.113.5"),
        *("::", "::1", "::ffff:8.8.8.8", "::ffff:127.0.0.1", "::8.8.8.8", "fe80::1", "fe80::1%eth0", "fec0::1"),
        *("fc00::1", "fd00:ec2::254", "ff02::1", "64:ff9b::8.8.8.8", "64:ff9b:1::1", "100::1", "2001:db8::1"),
        *("2002:7f00:1::", "2001:0:4136:e378::", "3fff::1"),
    ],
)
def test_others(address: str) -> None:
    assert not is_public(address)


def test_none_is_public_that_python_calls_private() -> None:
    rng = random.Random(1)
    for _ in range(20_000):
        four, six = ipaddress.IPv4Address(rng.getrandbits(32)), ipaddress.IPv6Address(rng.getrandbits(128))
        for address in (four, six, ipaddress.IPv6Address(0x2000 << 112 | rng.getrandbits(125) >> 3)):
            if is_public(str(address)):
                assert address.is_global
                assert not any((address.is_multicast, address.is_reserved, address.is_unspecified))


def test_what_is_no_address() -> None:
    with pytest.raises(ValueError, match="does not appear"):
        is_public("a.test")
