"""Sends one event to one receiver, signed as Standard Webhooks says (https://www.standardwebhooks.com)."""

import asyncio
import base64
import hashlib
import hmac
import secrets
import ssl
import time
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any, Final

import httpx

from domain.db.sql import as_json
from domain.jobs.webhooks.target import DeliveryFailed, Target

_PREFIX: Final = "whsec_"
_SECRET_BYTES: Final = 32
#: Maximum time for a response, from the look-up of the host on, in seconds.
_TIMEOUT_SECONDS: Final = 15.0


class NoAnswer(DeliveryFailed):
    """The receiver did not answer in time."""

    code = "delivery-timeout"


def new_secret() -> str:
    """Make the secret of a new webhook."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def signed_headers(secret: str, event_id: str, body: bytes, *, at: int) -> dict[str, str]:
    """Return the headers with which a receiver verifies the body; ``at`` is in seconds since 1970."""
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    signature = hmac.digest(key, f"{event_id}.{at}.".encode() + body, hashlib.sha256)
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(at),
        "webhook-signature": f"v1,{base64.b64encode(signature).decode()}",
    }


class Sender:
    """Sends events to listed hosts only. It uses no proxy and follows no redirect."""

    def __init__(self, hosts: Collection[str]) -> None:
        self._hosts = hosts

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()

    async def send(self, url: str, secret: str, event_id: str, event: Mapping[str, Any]) -> int:
        """Send an event and return the status of the response.

        Raises:
            WebhookHostRefused: the host is not listed any more.
            NoAnswer: no response arrived in time.
            DeliveryFailed: the receiver could not be reached.
        """
        target = Target.of(url, self._hosts)
        body = as_json(event).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "Cistern"}
        headers |= signed_headers(secret, event_id, body, at=int(time.time()))
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                return await self._post(target, body, headers)
        except TimeoutError:
            raise NoAnswer(f"The receiver did not answer within {_TIMEOUT_SECONDS:g} s.") from None

    async def _post(self, target: Target, body: bytes, headers: Mapping[str, str]) -> int:
        """Post to an address that was checked, not to the name: a second look-up of it could lead somewhere else."""
        reason = "no address"
        # A client of its own: connections are kept by address, and another name at it has another certificate.
        async with httpx.AsyncClient(verify=self._tls, trust_env=False, timeout=2 * _TIMEOUT_SECONDS) as client:
            for address in await target.addresses(self._hosts):
                request = client.build_request(
                    "POST",
                    target.url.copy_with(host=address),
                    content=body,
                    headers={**headers, "Host": target.url.netloc.decode("ascii")},
                    extensions={"sni_hostname": target.host.strip("[].")},
                )
                try:
                    response = await client.send(request, stream=True)  # its body is of no use, however long it is
                except httpx.ConnectError as error:
                    reason = type(error).__name__
                except httpx.HTTPError as error:
                    raise DeliveryFailed(f"The receiver could not be reached ({type(error).__name__}).") from None
                else:
                    await response.aclose()
                    return response.status_code
        raise DeliveryFailed(f"The receiver could not be reached ({reason}).")
