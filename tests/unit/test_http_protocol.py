"""Connections of the API: what is too large or too slow is refused, and leaves room for others."""

import asyncio
import json
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from api.http_protocol import LimitedHttpProtocol, raise_descriptor_limit

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n"

Connect = Callable[..., Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Protocol(LimitedHttpProtocol):
    """The protocol with short deadlines, and connections of its own."""

    head_seconds = body_seconds = write_seconds = 0.1
    check_seconds = 0.02
    _waiting = {}  # noqa: RUF012 (as in the base class)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Return the body, or as many bytes as the path says."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        if not message["more_body"]:
            break
    size = scope["path"].removeprefix("/")
    body = b"x" * int(size) if size else body
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving(protocol: type[LimitedHttpProtocol], app: Any = echo) -> AsyncIterator[Connect]:
    config = uvicorn.Config(app, access_log=False, timeout_keep_alive=30, log_config=None)
    config.load()
    build = partial(protocol, config=config, server_state=ServerState(), app_state={})
    server = await asyncio.get_running_loop().create_server(build, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    writers: list[asyncio.StreamWriter] = []

    async def connect(client: socket.socket | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        client = client or socket.socket()
        client.settimeout(0)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=client)
        writers.append(writer)
        return reader, writer

    try:
        yield connect
    finally:
        server.close()
        for writer in writers:
            writer.close()


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Open a connection to a server whose deadlines are short."""
    async with serving(Protocol) as connect:
        yield connect


async def response_to(connect: Connect, *pieces: bytes) -> tuple[int, Any]:
    """Send the pieces, and return the status and the decoded body of a response that ends the connection."""
    reader, writer = await connect()
    for piece in pieces:
        writer.write(piece)
    head, _, body = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


async def rest_of(reader: asyncio.StreamReader) -> bytes:
    """Read until the server has closed the connection; it may reset it, while more is being sent."""
    received = b""
    with suppress(ConnectionResetError):
        while piece := await asyncio.wait_for(reader.read(100_000), 10):
            received += piece
    return received


async def served(reader: asyncio.StreamReader) -> bytes:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    assert head.startswith(b"HTTP/1.1 200 ")
    length = next(line for line in head.splitlines() if line.lower().startswith(b"content-length"))
    return await reader.readexactly(int(length.split()[1]))


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([b"X: " + b"a" * 33_000 + b"\r\n\r\n"], id="one large header, complete"),
        pytest.param([b"X-%d: 1\r\n" % number for number in range(101)] + [b"\r\n"], id="101 headers"),
    ],
)
async def test_headers_that_are_too_large_are_refused(connect: Connect, headers: list[bytes]) -> None:
    status, problem = await response_to(connect, GET, *headers)

    assert (status, problem["code"], problem["status"]) == (431, "headers-too-large", 431)
    assert "32 KiB and 100 headers" in problem["detail"]


@pytest.mark.parametrize("piece", [b"a" * 10_000, b"a: 1\r\n" * 1_000], ids=["one header", "many headers"])
async def test_headers_without_an_end_are_refused(connect: Connect, piece: bytes) -> None:
    reader, writer = await connect()
    writer.write(GET)
    with suppress(ConnectionError):
        for _ in range(20_000):  # 120 MB, which the server would have to keep
            writer.write(piece)
            await writer.drain()

    assert (await rest_of(reader))[:13] in (b"HTTP/1.1 431 ", b"")
    assert reader.at_eof() or reader.exception()


async def test_path_that_is_too_large_is_refused(connect: Connect) -> None:
    status, problem = await response_to(connect, b"GET /" + b"a" * 33_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")

    assert (status, problem["code"]) == (431, "headers-too-large")


async def test_headers_below_the_limits_are_accepted(connect: Connect) -> None:
    reader, writer = await connect()
    writer.write(GET + b"X: " + b"a" * 32_000 + b"\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(90)) + b"\r\n")

    assert await served(reader) == b""


async def test_limit_of_headers_is_per_request(connect: Connect) -> None:
    reader, writer = await connect()
    for _ in range(5):
        writer.write(GET + b"X: " + b"a" * 20_000 + b"\r\n\r\n")
        assert await served(reader) == b""


@pytest.mark.parametrize("beginning", [b"", b"GET /", GET, GET + b"X: 1", b"\r\n\r\n"])
async def test_connection_without_a_complete_head_is_closed(connect: Connect, beginning: bytes) -> None:
    status, problem = await response_to(connect, beginning)

    assert (status, problem["code"]) == (408, "request-timeout")


async def test_connection_without_a_complete_body_is_closed(connect: Connect) -> None:
    status, problem = await response_to(connect, POST, b"ab")

    assert (status, problem["code"]) == (408, "request-timeout")


async def test_bytes_one_by_one_do_not_extend_a_deadline(connect: Connect) -> None:
    reader, writer = await connect()
    writer.write(GET)

    async def trickle() -> None:
        with suppress(ConnectionError):
            while True:
                writer.write(b"X: 1\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)

    sending = asyncio.create_task(trickle())
    response = await rest_of(reader)
    sending.cancel()

    assert response[:13] in (b"HTTP/1.1 408 ", b"")  # what arrives after the end resets the connection


async def test_second_request_has_a_deadline_too(connect: Connect) -> None:
    reader, writer = await connect()
    writer.write(POST + b"abcd")
    assert await served(reader) == b"abcd"
    writer.write(b"GET / HT")

    assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 408 ")


async def test_request_at_work_and_an_idle_connection_have_no_deadline() -> None:
    at_work, may_end = asyncio.Event(), asyncio.Event()

    async def wait(scope: Any, receive: Any, send: Any) -> None:
        at_work.set()
        await may_end.wait()
        await echo(scope, receive, send)

    async with serving(Protocol, wait) as connect:
        reader, writer = await connect()
        writer.write(GET + b"\r\n")
        await at_work.wait()
        # Another connection runs into its deadline, so at least as much time has passed for this one.
        assert (await response_to(connect, b""))[0] == 408
        assert not reader.at_eof()
        may_end.set()
        assert await served(reader) == b""
        assert (await response_to(connect, b""))[0] == 408
        writer.write(GET + b"\r\n")
        assert await served(reader) == b""


async def test_response_that_is_not_read_is_given_up() -> None:
    given_up = asyncio.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        gone = asyncio.create_task(receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not gone.done():
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
        given_up.set()

    async with serving(Protocol, endless) as connect:
        _, writer = await connect()
        writer.write(GET + b"\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.wait_for(given_up.wait(), 10)


async def test_response_that_is_read_slowly_is_sent_whole() -> None:
    class Slower(Protocol):
        write_seconds = 1.0

    with socket.socket() as small:
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)  # else the kernel takes it all
        async with serving(Slower) as connect:
            reader, writer = await connect(small)
            writer.write(b"GET /10000000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            received = 0
            while piece := await reader.read(50_000):
                received += len(piece)
                await asyncio.sleep(0.01)  # in all, twice the deadline
                if received == 10_000_000:
                    break

    assert received == 10_000_000


async def test_connection_that_waits_longest_makes_room_for_a_new_one() -> None:
    class Three(Protocol):
        max_connections = 3
        head_seconds = 60.0
        _waiting = {}  # noqa: RUF012

    async with serving(Three) as connect:
        idle = [await connect() for _ in range(3)]
        for reader, writer in idle:
            writer.write(POST + b"abcd")
            assert await served(reader) == b"abcd"
        idle[0][1].write(GET)  # a part of a request does not count as one
        newcomer, writer = await connect()
        writer.write(POST + b"abcd")
        assert await served(newcomer) == b"abcd"
        assert await rest_of(idle[0][0]) == b""
        idle[1][1].write(POST + b"abcd")
        assert await served(idle[1][0]) == b"abcd"


async def test_connection_is_refused_while_all_others_are_at_work() -> None:
    may_end = asyncio.Event()

    class Two(Protocol):
        max_connections = 2
        _waiting = {}  # noqa: RUF012

    async def wait(scope: Any, receive: Any, send: Any) -> None:
        await may_end.wait()
        await echo(scope, receive, send)

    async with serving(Two, wait) as connect:
        at_work = [await connect() for _ in range(2)]
        for _, writer in at_work:
            writer.write(GET + b"\r\n")
        while Two._waiting or not at_work:
            await asyncio.sleep(0)
        status, problem = await response_to(connect, b"")
        may_end.set()
        for reader, _ in at_work:
            assert await served(reader) == b""

    assert (status, problem["code"]) == (503, "too-many-connections")


def test_soft_limit_of_descriptors_is_raised_to_the_hard_one(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(1_024, 4_096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))

    assert raise_descriptor_limit() == 4_096
    assert limits[-1] == (4_096, 4_096)
    assert raise_descriptor_limit() == 4_096
    assert len(limits) == 2
