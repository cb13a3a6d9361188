"""Where deliveries may go: to hosts that the operator has listed, at the addresses that DNS returns now."""

import asyncio
import socket
from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, NamedTuple, Self

import httpx

from domain.errors import CisternError, Invalid, WebhookHostRefused

_PORTS: Final = {"http": 80, "https": 443}


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
        name = url.raw_host.decode("ascii").lower()
        host = f"[{name}]" if ":" in name else name
        if host.rstrip(".") not in {one.rstrip(".") for one in hosts}:
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
        except OSError:
            raise DeliveryFailed("The name of the host could not be resolved.") from None
        usable = [address for _, _, _, _, (address, *_) in found if self._is_allowed(str(address), hosts)]
        if not usable:
            raise DeliveryFailed("The name of the host leads to an address of this machine or link, which is refused.")
        return list(dict.fromkeys(map(str, usable)))

    def _is_allowed(self, text: str, hosts: Collection[str]) -> bool:
        address = ip_address(text.partition("%")[0])
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        written = f"[{address}]" if address.version == 6 else str(address)  # noqa: PLR2004 (IPv6)
        return not _is_near(address) or written in hosts or (self.host == "localhost" and address.is_loopback)


def _is_near(address: IPv4Address | IPv6Address) -> bool:
    """Return whether an address is of this machine or of its link, or no address of one host at all."""
    return address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast
