"""Where deliveries may go: to hosts that the operator has listed, at the addresses that DNS returns now."""

import asyncio
import socket
from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final, NamedTuple, Self

import httpx

from domain.errors import CisternError, Invalid, WebhookHostRefused

_PORTS: Final = {"http": 80, "https": 443}
_PORT_LIMIT: Final = 2**16
#: IPv6 addresses that end with one of IPv4: by NAT64 (RFC 6052, RFC 8215), and the old "compatible" ones.
_TRANSLATED: Final = tuple(map(IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "::/96")))
#: Where clouds hand out credentials, besides link-local addresses: AWS, Google, Alibaba, Azure and Oracle.
_METADATA: Final = frozenset(
    map(ip_address, ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"))
)


class DeliveryFailed(CisternError):
    """The receiver did not accept the event."""

    code = "delivery-failed"


class Target(NamedTuple):
    """The checked URL of a webhook. ``host`` is written as in `CISTERN_WEBHOOK_HOSTS`."""

    url: httpx.URL
    host: str
    port: int

    @classmethod
    def of(cls, text: str, hosts: Collection[str]) -> Self:
        """Check a URL.

        Raises:
            Invalid: it is not a plain URL of http or https.
            WebhookHostRefused: its host is not listed.
        """
        try:
            url = httpx.URL(text)
        except httpx.InvalidURL:
            raise Invalid("This is not a valid URL.", field="url") from None
        if url.scheme not in _PORTS or not url.host:
            raise Invalid("A webhook needs a URL that begins with https:// or http://.", field="url")
        if url.userinfo or url.fragment:
            raise Invalid("The URL of a webhook has neither a user nor a fragment.", field="url")
        if url.port is not None and not 0 < url.port < _PORT_LIMIT:
            raise Invalid("The port of the URL is not between 1 and 65535.", field="url")
        name = url.raw_host.decode("ascii").lower()
        host = f"[{name}]" if ":" in name else name
        if host.removesuffix(".") not in {one.removesuffix(".") for one in hosts}:
            raise WebhookHostRefused(host)
        return cls(url, host, url.port or _PORTS[url.scheme])

    async def addresses(self, hosts: Collection[str]) -> list[str]:
        """Look up the addresses of the host that a delivery may be sent to.

        A name can be made to lead anywhere: to this machine, or to the service of a cloud that hands out credentials.
        Those addresses have to be listed themselves.

        Raises:
            DeliveryFailed: the name cannot be resolved, or leads only to addresses that are refused.
        """
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self.host.strip("[]"), self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):  # a label of the name may be too long
            raise DeliveryFailed("The name of the host could not be resolved.") from None
        usable = [address for _, _, _, _, (address, *_) in found if self._is_allowed(str(address), hosts)]
        if not usable:
            raise DeliveryFailed("The name leads to this machine or link, or to a cloud's metadata, which is refused.")
        return list(dict.fromkeys(map(str, usable)))

    def _is_allowed(self, text: str, hosts: Collection[str]) -> bool:
        address = ip_address(text.partition("%")[0])
        reached = _reached(address)
        written = {f"[{one}]" if one.version == 6 else str(one) for one in reached}  # noqa: PLR2004 (IPv6)
        is_near = any(map(_is_near, reached))
        return not is_near or not written.isdisjoint(hosts) or (self.host == "localhost" and address.is_loopback)


def _reached(address: IPv4Address | IPv6Address) -> Collection[IPv4Address | IPv6Address]:
    """Return an address and, if it is IPv6 and a gateway or the system translates it, the IPv4 address inside it."""
    if not isinstance(address, IPv6Address):
        return (address,)
    inside = address.ipv4_mapped or address.sixtofour
    if inside is None and any(address in network for network in _TRANSLATED):
        inside = IPv4Address(int(address) % 2**32)
    return (address,) if inside is None else (address, inside)


def _is_near(address: IPv4Address | IPv6Address) -> bool:
    """Return whether an address is of this machine, its link or its cloud, or no address of one host at all."""
    is_of_machine_or_link = address.is_loopback or address.is_link_local
    return is_of_machine_or_link or address in _METADATA or address.is_unspecified or address.is_multicast
