"""Which addresses are public: pictures from the web lie at none other.

Who writes a page chooses where its pictures are asked for. An address inside a cluster, or of a cloud's metadata, is
none that a page may name, and neither is one that stands for it in another form: mapped into IPv6, by NAT64, by 6to4.
The lists are IANA's registries of special purpose, written out, since Python's own differ from version to version.
"""

from __future__ import annotations

import ipaddress

_NOT_PUBLIC = [
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",  # unspecified
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared by a provider's customers; a cloud's metadata
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud's metadata
        "169.254.0.0/16",  # link-local; clouds' metadata
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4's relays
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/3",  # multicast, reserved, broadcast
        "2001::/23",  # Teredo, ORCHID and other protocols
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: holds an IPv4 address
        "3fff::/20",  # documentation
    )
]
# All that is given out of IPv6. Loopback, mapped IPv4, NAT64, unique local, link-local and multicast lie outside.
_GIVEN_OUT = ipaddress.ip_network("2000::/3")


def is_public(address: str) -> bool:
    """Whether an IPv4 or IPv6 address, as the system writes it, is one that anybody may be sent to.

    Raises:
        ValueError: it is no address.
    """
    found = ipaddress.ip_address(address.partition("%")[0])  # behind it, the interface of a link-local one
    if found.version == 6 and found not in _GIVEN_OUT:
        return False
    return not any(found in network for network in _NOT_PUBLIC)
