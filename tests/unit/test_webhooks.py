"""Where deliveries may go, how they are signed, and what becomes of an attempt."""

import asyncio
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from standardwebhooks import Webhook as Verifier

from domain.errors import Invalid, WebhookHostRefused
from domain.jobs.webhooks.handler import _while_granted
from domain.jobs.webhooks.sender import Sender, new_secret, signed_headers
from domain.jobs.webhooks.target import DeliveryFailed, Target
from domain.storage.context import Fence, Grant, Stopped, StopReason
from tests.support.receiver import receiving

HOSTS = ("hooks.example.org", "127.0.0.1", "[::1]", "10.0.0.7")
EVENT = {"type": "job.failed", "data": {"job": {"kind": "ü"}}}
#: Sets the addresses that every name leads to, and returns the names that are looked up from then on.
Resolve = Callable[..., list[str]]


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Resolve:
    def set_addresses(*addresses: str) -> list[str]:
        names: list[str] = []

        async def getaddrinfo(_loop: object, host: str | bytes, port: int, **_: object) -> list[Any]:
            names.append(host if isinstance(host, str) else host.decode())
            return [(0, 0, 0, "", (address, port)) for address in addresses]

        monkeypatch.setattr(type(asyncio.get_running_loop()), "getaddrinfo", getaddrinfo, raising=False)
        return names

    return set_addresses


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("https://hooks.example.org/a?b=c", "hooks.example.org", 443),
        ("http://HOOKS.example.org.:81", "hooks.example.org.", 81),
        ("http://[::1]:81/", "[::1]", 81),
    ],
)
def test_listed_host_is_accepted_however_it_is_written(url: str, host: str, port: int) -> None:
    target = Target.of(url, HOSTS)

    assert (target.host, target.port) == (host, port)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/",
        "https://x.hooks.example.org/",
        "https://hooks.example.org../",
        "https://hooks.example.org.evil.example/",
        "https://evil.example/?hooks.example.org",
        "https://evil.example\\@hooks.example.org/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://localhost/",
    ],
)
def test_other_host_is_refused(url: str) -> None:
    with pytest.raises(Invalid):
        Target.of(url, HOSTS)


def test_no_host_is_listed_by_default() -> None:
    with pytest.raises(WebhookHostRefused):
        Target.of("https://hooks.example.org/", ())


@pytest.mark.parametrize(
    "url",
    [
        *("", "hooks.example.org", "ftp://hooks.example.org", "https://a@hooks.example.org"),
        *("https://", "http://[", "x\n"),
        *(f"https://hooks.example.org:{port}/" for port in (-1, 0, 65536)),
    ],
)
def test_text_that_is_no_plain_url_is_invalid(url: str) -> None:
    with pytest.raises(Invalid):
        Target.of(url, HOSTS)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.2", "169.254.169.254", "0.0.0.0", "::", "fe80::1%eth0", "::ffff:169.254.169.254", "224.0.0.1"),
        *("64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:2", "::127.0.0.2", "2002:a9fe:a9fe::1"),
        *("fd00:ec2::254", "100.100.100.200", "64:ff9b::6464:64c8"),
    ],
)
async def test_name_that_leads_near_is_refused(resolve: Resolve, address: str) -> None:
    resolve(address)
    with pytest.raises(DeliveryFailed, match="this machine or link"):
        await Target.of("https://hooks.example.org/", HOSTS).addresses(HOSTS)


async def test_listed_name_that_no_resolver_takes_fails_the_delivery() -> None:
    host = f"{'a' * 64}.example"
    with pytest.raises(DeliveryFailed, match="could not be resolved"):
        await Target.of(f"https://{host}/", [host]).addresses([host])


async def test_name_may_lead_to_private_addresses_and_to_near_ones_that_are_listed(resolve: Resolve) -> None:
    resolve("192.168.1.1", "127.0.0.1", "127.0.0.2", "::1", "192.168.1.1", "64:ff9b::a00:1", "::ffff:127.0.0.1")
    found = await Target.of("https://hooks.example.org/", HOSTS).addresses(HOSTS)

    assert found == ["192.168.1.1", "127.0.0.1", "::1", "64:ff9b::a00:1", "::ffff:127.0.0.1"]


async def test_localhost_may_be_this_machine_if_it_is_listed_and_nothing_else_near(resolve: Resolve) -> None:
    resolve("127.0.0.1", "169.254.169.254")

    assert await Target.of("http://localhost/", ["localhost"]).addresses(["localhost"]) == ["127.0.0.1"]


async def test_connection_goes_to_the_address_that_was_checked(resolve: Resolve) -> None:
    """The name is not looked up again: it could lead somewhere else by then."""
    async with receiving() as receiver:
        names = resolve("127.0.0.1")
        url = f"http://hooks.example.org:{receiver.port}/x"
        assert await Sender(HOSTS).send(url, new_secret(), "id", EVENT) == 204

    assert names.count("hooks.example.org") == 1
    assert receiver.requests[0].headers["host"] == f"hooks.example.org:{receiver.port}"


async def test_redirect_is_not_followed_and_no_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    async with receiving() as other, receiving(f"302 Found\r\nLocation: {other.url}") as receiver:
        assert await Sender(HOSTS).send(receiver.url, new_secret(), "id", EVENT) == 302

    assert (len(receiver.requests), other.requests) == (1, [])


async def test_receiver_that_is_not_there_or_does_not_answer_fails_the_delivery(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with receiving() as receiver:
        url = receiver.url
    with pytest.raises(DeliveryFailed, match="could not be reached"):
        await Sender(HOSTS).send(url, new_secret(), "id", EVENT)

    monkeypatch.setattr("domain.jobs.webhooks.sender._TIMEOUT_SECONDS", 0.05)
    async with receiving("") as silent:
        with pytest.raises(DeliveryFailed, match="did not answer"):
            await Sender(HOSTS).send(silent.url, new_secret(), "id", EVENT)


async def test_library_of_the_standard_verifies_what_is_sent() -> None:
    secret = new_secret()
    async with receiving() as receiver:
        await Sender(HOSTS).send(receiver.url, secret, "id", EVENT)

    assert receiver.requests[0].verified(secret) == EVENT
    assert receiver.requests[0].headers["content-type"] == "application/json"


def test_signature_is_that_of_the_library() -> None:
    secret, at = new_secret(), int(time.time())
    headers = signed_headers(secret, "msg_1", b"{}", at=at)

    assert Verifier(secret).verify(b"{}", headers) == {}
    assert len({new_secret() for _ in range(100)}) == 100


async def test_delivery_ends_when_its_attempt_is_stopped() -> None:
    grant, cancelled = Grant(UUID(int=1), Fence(0, 0), time.monotonic() + 60), asyncio.Event()

    async def hang() -> None:
        grant.stop(StopReason.SHUTDOWN)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(Stopped):
        await _while_granted(hang(), grant)
    assert cancelled.is_set()
