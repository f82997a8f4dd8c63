"""Who is connected to a port of this host, by what the kernel tells of its sockets."""

from __future__ import annotations

import ipaddress
import struct
from pathlib import Path

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_ESTABLISHED = "01"


def peers_of(port: int) -> list[str]:
    """Return the addresses of those whose connections to a port are established."""
    found = set()
    for table in _TABLES:
        try:
            lines = table.read_text().splitlines()[1:]
        except FileNotFoundError:
            continue
        for line in lines:
            # See proc_pid_net(5): number, own address, peer's address, state.
            _, own, peer, state, *_ = line.split()
            if state == _ESTABLISHED and int(own.rpartition(":")[2], 16) == port:
                found.add(_address(peer.partition(":")[0]))
    return sorted(found)


def _address(text: str) -> str:
    """Return an address as it is written usually; the kernel prints its words as numbers of this machine."""
    words = (int(text[at : at + 8], 16) for at in range(0, len(text), 8))
    address = ipaddress.ip_address(b"".join(struct.pack("=I", word) for word in words))
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
