"""A small stand-in for Cistern's API: volumes, attachments and their jobs, on a socket. Attachments are directories."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

Object = dict[str, Any]
CREATED_AT = "2026-01-31T02:30:00Z"


class Refused(Exception):
    """A problem that a request is answered with."""

    def __init__(self, status: int, code: str, detail: str, **members: Any) -> None:
        super().__init__(detail)
        self.body = {"status": status, "code": code, "detail": detail, "request_id": "r1", **members}


class Page(NamedTuple):
    """One page of a list."""

    items: list[Object]
    next_cursor: str | None


class AttachmentApi:
    """The state of the API. Jobs end at once, or when `finish` is called for their kind if it is in `held`."""

    def __init__(self, root: Path, *, page_size: int = 200) -> None:
        self.root = root
        self.page_size = page_size
        self.volumes: dict[str, Object] = {}
        self.attachments: dict[str, Object] = {}
        self.jobs: dict[str, Object] = {}
        self.requests: list[tuple[str, str, Any]] = []
        self.refusals: dict[tuple[str, str], Refused] = {}
        self.lost_answers: set[tuple[str, str]] = set()
        self.accepted: dict[str, Object | Page] = {}
        self.held: set[str] = set()
        self.failing: dict[str, Object] = {}
        self.changed = threading.Condition(threading.RLock())
        self._work: dict[str, Callable[[], Object | None]] = {}
        volume, attachments = "/volumes/([^/]+)", "/volumes/([^/]+)/attachments"
        self._routes: dict[tuple[str, str], Callable[..., Object | Page]] = {
            ("GET", "/volumes"): lambda query: self._page(self.volumes, query, "name"),
            ("GET", "/attachments"): lambda query: self._page(self.attachments, query, "node", "holder", "volume_id"),
            ("GET", "/snapshots"): self._get_snapshots,
            ("GET", volume): lambda _, volume_id: self._volume(volume_id),
            ("GET", "/jobs/([^/]+)"): lambda _, job_id: self.jobs[job_id],
            ("POST", "/jobs/([^/]+)/cancel"): self._cancel,
            ("POST", "/volumes"): self._create,
            ("DELETE", volume): lambda _, volume_id: self._delete(self._volume(volume_id)),
            ("POST", attachments): lambda body, volume_id: self._attach(self._volume(volume_id), body),
            ("DELETE", f"{attachments}/([^/]+)"): lambda _, *ids: self._detach(self._volume(ids[0]), ids[1]),
        }

    def add_volume(self, name: str, **members: Any) -> Object:
        """Add a volume that is available."""
        volume = {
            "id": str(uuid4()),
            "name": name,
            "size": 1 << 30,
            "filesystem": "ext4",
            "state": "available",
            "backend": "local",
            "labels": {},
            "autogrow": None,
            "source": None,
            "job_id": None,
            "used": 4096,
            "filesystem_size": 1 << 29,
            "filesystem_used": 8192,
            "created_at": CREATED_AT,
            **members,
        }
        self.volumes[volume["id"]] = volume
        return volume

    def add_attachment(self, volume: Object, node: str, holder: str) -> Object:
        """Add an attachment that is attached."""
        attachment = {
            "id": str(uuid4()),
            "volume_id": volume["id"],
            "volume_name": volume["name"],
            "node": node,
            "holder": holder,
            "mode": "rw",
            "path": None,
            "state": "attached",
        }
        self.attachments[attachment["id"]] = attachment
        return attachment

    def holders(self, name: str) -> list[str]:
        """Return who has a volume attached."""
        return sorted(one["holder"] for one in self.attachments.values() if one["volume_name"] == name)

    def bodies(self, method: str, path: str) -> list[Any]:
        """Return the bodies of requests."""
        return [body for found, where, body in self.requests if (found, where) == (method, path)]

    def count(self, method: str, suffix: str) -> int:
        """Return how many requests there were for paths that end so."""
        return sum(found == method and path.endswith(suffix) for found, path, _ in self.requests)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until requests have made a condition true."""
        with self.changed:
            assert self.changed.wait_for(condition, timeout=20)

    def finish(self, kind: str) -> None:
        """End all jobs of a kind, and hold it no longer."""
        with self.changed:
            self.held.discard(kind)
            for job in self.jobs.values():
                if job["kind"] == kind and job["status"] == "running":
                    self._end(job)

    def answer(self, method: str, target: str, body: Any) -> Object | Page:
        """Carry out a request."""
        with self.changed:
            parts, query = urlsplit(target), parse_qs(urlsplit(target).query)
            path = parts.path.removeprefix("/api/v1")
            self.requests.append((method, path, body))
            self.changed.notify_all()
            for (refused_method, suffix), refused in self.refusals.items():
                if method == refused_method and path.endswith(suffix):
                    raise refused
            for (routed_method, pattern), handler in self._routes.items():
                match = re.fullmatch(pattern, path)
                if method == routed_method and match:
                    return handler(query if method == "GET" else body, *match.groups())
            raise Refused(404, "not-found", f"no such route: {method} {path}")

    def _get_snapshots(self, _: Any) -> Page:
        return Page([{"id": "5" * 8, "name": "monday", "volume_id": one} for one in self.volumes], None)

    def _cancel(self, _: Any, job_id: str) -> Object:
        self.jobs[job_id]["status"] = "cancelled"
        return self.jobs[job_id]

    def _page(self, objects: dict[str, Object], query: dict[str, list[str]], *filters: str) -> Page:
        wanted = {name: query[name][0] for name in filters if name in query}
        found = [one for one in objects.values() if all(one[name] == text for name, text in wanted.items())]
        first = int(query.get("cursor", ["0"])[0])
        last = first + min(self.page_size, int(query["limit"][0]))
        return Page(found[first:last], str(last) if last < len(found) else None)

    def _volume(self, volume_id: str) -> Object:
        if volume_id not in self.volumes:
            raise Refused(404, "volume-not-found", "There is no such volume")
        return self.volumes[volume_id]

    def _create(self, body: Object) -> Object:
        if any(one["name"] == body["name"] for one in self.volumes.values()):
            raise Refused(409, "name-taken", "Another volume has this name")
        known = {name: body[name] for name in ("filesystem", "labels", "autogrow") if name in body}
        source = {f"{kind}_id": body[f"from_{kind}"] for kind in ("snapshot", "volume") if body.get(f"from_{kind}")}
        members = {"size": body["size"] or 1 << 30, "backend": body["backend"] or "local", "source": source or None}
        volume = self.add_volume(body["name"], **known, **members, state="creating")
        return self._start("volume.create", volume, lambda: None)

    def _delete(self, volume: Object) -> Object:
        for one in self.attachments.values():
            if one["volume_id"] == volume["id"]:
                held = {name: one[name] for name in ("node", "holder")}
                raise Refused(409, "volume-attached", "The volume is attached", **held, since=CREATED_AT)
        self._refuse_if_busy(volume)
        volume["state"] = "deleting"

        def work() -> None:
            del self.volumes[volume["id"]]

        return self._start("volume.delete", volume, work)

    def _attach(self, volume: Object, body: Object) -> Object:
        self._refuse_if_busy(volume)
        for one in self.attachments.values():
            if one["volume_id"] == volume["id"] and one["node"] != body["node"]:
                held = {name: one[name] for name in ("node", "holder")}
                raise Refused(409, "volume-attached", "The volume is attached", **held, since=CREATED_AT)

        def work() -> Object:
            (self.root / volume["id"]).mkdir(exist_ok=True)
            here = (one for one in self.attachments.values() if one["volume_id"] == volume["id"])
            found = next((one for one in here if one["holder"] == body["holder"]), None)
            found = found or self.add_attachment(volume, body["node"], body["holder"])
            return {
                "volume_id": volume["id"],
                "attachment_id": found["id"],
                "device": "loop0",
                "path": str(self.root / volume["id"]),
            }

        volume["state"] = "attaching"
        return self._start("volume.attach", volume, work)

    def _detach(self, volume: Object, attachment_id: str) -> Object:
        if attachment_id not in self.attachments:
            raise Refused(404, "attachment-not-found", "There is no such attachment")
        self._refuse_if_busy(volume)

        def work() -> None:
            del self.attachments[attachment_id]

        volume["state"] = "detaching"
        return self._start("volume.detach", volume, work)

    def _refuse_if_busy(self, volume: Object) -> None:
        if volume["job_id"] is not None:
            raise Refused(409, "volume-busy", "Another operation is at work", job_id=volume["job_id"])
        if volume["state"] == "error":
            raise Refused(409, "volume-unusable", "The volume is in the state error")

    def _start(self, kind: str, volume: Object, work: Callable[[], Object | None]) -> Object:
        job: Object = {"id": str(uuid4()), "kind": kind, "status": "running", "result": None, "error": None}
        self.jobs[job["id"]] = job
        self._work[job["id"]] = work
        volume["job_id"] = job["id"]
        job["volume_id"] = volume["id"]
        accepted = dict(job)
        if kind not in self.held:
            self._end(job)
        return accepted

    def _end(self, job: Object) -> None:
        volume = self.volumes[job["volume_id"]]
        volume["job_id"] = None
        if job["kind"] in self.failing:
            job |= {"status": "failed", "error": self.failing[job["kind"]]}
            volume |= {"state": "error", "last_error": job["error"]}
        else:
            volume["state"] = "available"
            job |= {"status": "succeeded", "result": self._work[job["id"]]()}
        self.changed.notify_all()


@contextmanager
def serve(api: AttachmentApi) -> Iterator[str]:
    """Serve the API, and yield its URL."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            key = self.headers["Idempotency-Key"] or str(uuid4())
            try:
                answer = api.accepted.get(key)
                if answer is None:
                    answer = api.answer(self.command, self.path, json.loads(content) if content else None)
                if self.command == "POST":
                    api.accepted[key] = answer
                route = self.command, urlsplit(self.path).path.removeprefix("/api/v1")
                if route in api.lost_answers:
                    return api.lost_answers.discard(route)
                status, body = 200, answer._asdict() if isinstance(answer, Page) else answer
            except Refused as refused:
                status, body = refused.body["status"], refused.body
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
            return None

        do_GET = do_POST = do_DELETE = answer  # noqa: N815 (the server's names)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
