"""Cistern's API in memory, as a program on a host that uses volumes sees it; threads may share it.

Jobs succeed at once, unless their kind is among ``held`` (they stay at work until `release`) or ``failing``.
"""

import json
import re
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from api.cli.http import HttpClient, NoResponse, Response
from api.problems import PROBLEM_TYPES

Json = dict[str, Any]
NOW = "2026-03-01T12:00:00+00:00"
#: Those of the attachments, which the table of this version of the API may not have.
STATUSES = {"volume-attached": 409, "unknown-node": 422, "attachment-not-found": 404}
GIB = 2**30


class Refused(Exception):
    """The API answers with a problem."""

    def __init__(self, code: str, **members: Any) -> None:
        super().__init__(code)
        self.code, self.members = code, members


class FakeCistern(HttpClient):
    def __init__(self) -> None:
        super().__init__("http://cistern", {})
        self.volumes: dict[str, Json] = {}
        self.snapshots: dict[str, Json] = {}
        self.jobs: dict[str, Json] = {}
        self.attachments: dict[str, Json] = {}
        self.nodes = {"node-1", "node-2"}
        self.backends: list[Json] = [{"name": "local", "free": 100 * GIB}, {"name": "null", "free": None}]
        self.held: set[str] = set()
        #: The codes that jobs of these kinds fail with.
        self.failing: dict[str, str] = {}
        #: A problem, or None for an API that is away, for all requests.
        self.answer: str | None = ""
        #: Called once, before the next request of this method and path: what another client does in between.
        self.meanwhile: tuple[str, str, Callable[[], Any]] | None = None
        self.requests: list[tuple[str, str, Any]] = []
        #: Whether the node grows file systems of attached volumes at once.
        self.grows = True
        self._lock = threading.RLock()
        #: What ends the jobs that are at work.
        self._ends: dict[str, Callable[[], None]] = {}

    # --- HTTP --------------------------------------------------------------------------------------------

    def request(self, method: str, path: str, *, params: Any = None, body: Any = None, **_: Any) -> Response:
        if self.answer is None:
            raise NoResponse("connection refused")
        with self._lock:
            self._let_another_client_be_first(method, path)
            self.requests.append((method, path, body))
            try:
                status, found = self._route(method, path.removeprefix("/api/v1"), params or {}, body)
            except Refused as refused:
                status = STATUSES.get(refused.code) or PROBLEM_TYPES[refused.code].status
                problem = {
                    "code": refused.code,
                    "detail": f"It is {refused.code}.",
                    "request_id": "r",
                    "status": status,
                }
                return Response(status, {}, json.dumps(problem | refused.members).encode())
            return Response(status, {}, json.dumps(found).encode())

    def _let_another_client_be_first(self, method: str, path: str) -> None:
        if self.meanwhile is not None and self.meanwhile[:2] == (method, path.removeprefix("/api/v1")):
            act, self.meanwhile = self.meanwhile[2], None
            act()

    def _route(self, method: str, path: str, params: Json, body: Any) -> tuple[int, Json]:
        if self.answer:
            raise Refused(self.answer)
        routes: list[tuple[str, str, Callable[..., Json]]] = [
            ("GET", "/backends", lambda: {"items": self.backends}),
            ("GET", "/jobs/{}", lambda one: self._of(self.jobs, one, "job-not-found")),
            ("POST", "/jobs/{}/retry", self._retry),
            ("GET", "/volumes", lambda: self._page(self.volumes, params)),
            ("GET", "/volumes/{}", lambda one: self._of(self.volumes, one, "volume-not-found")),
            ("POST", "/volumes", lambda: self._create(body)),
            ("POST", "/volumes/{}/expand", lambda one: self._expand(one, body["to"])),
            ("DELETE", "/volumes/{}", self._delete),
            ("GET", "/volumes/{}/attachments", lambda one: self._attachments_of(one, params)),
            ("POST", "/volumes/{}/attachments", lambda one: self._attach(one, body)),
            ("DELETE", "/volumes/{}/attachments/{}", self._detach),
            ("GET", "/snapshots", lambda: self._page(self.snapshots, params)),
            ("GET", "/snapshots/{}", lambda one: self._of(self.snapshots, one, "snapshot-not-found")),
            ("POST", "/volumes/{}/snapshots", lambda one: self._take(one, body)),
            ("DELETE", "/snapshots/{}", self._delete_snapshot),
        ]
        for known, pattern, call in routes:
            match = re.fullmatch(pattern.replace("{}", "([0-9a-f-]+)"), urlsplit(path).path)
            if known == method and match:
                return (200 if method == "GET" else 202), call(*match.groups())
        raise Refused("not-found")

    @staticmethod
    def _of(rows: dict[str, Json], row_id: str, code: str) -> Json:
        if row_id not in rows:
            raise Refused(code)
        return rows[row_id]

    def _page(self, rows: dict[str, Json], params: Json) -> Json:
        limit, cursor = int(params["limit"]), params.get("cursor")
        filters = {name: value for name, value in params.items() if name not in ("limit", "cursor")}
        found = [one for one in reversed(rows.values()) if all(one[name] == value for name, value in filters.items())]
        if cursor is not None:
            if not cursor.startswith("after-"):
                raise Refused("bad-cursor")
            found = [one for one in found if one["number"] < int(cursor.removeprefix("after-"))]
        page = found[:limit]
        return {"items": page, "next_cursor": f"after-{page[-1]['number']}" if len(found) > limit else None}

    # --- jobs --------------------------------------------------------------------------------------------

    def _job(self, kind: str, effect: Callable[[], Any], row: Json, busy: str, idle: str, **columns: Any) -> Json:
        job = {"id": str(uuid4()), "kind": kind, "status": "queued", "error": None, "result": None, **columns}
        self.jobs[job["id"]] = job
        row.update(state=busy, job_id=job["id"])
        self._ends[job["id"]] = lambda: self._end(job, effect, row, idle)
        accepted = dict(job)
        if kind not in self.held:
            self._ends.pop(job["id"])()
        return accepted

    def _end(self, job: Json, effect: Callable[[], Any], row: Json, idle: str) -> None:
        row["job_id"] = None
        if (code := self.failing.get(job["kind"])) is not None:
            attached = job["kind"] in ("volume.attach", "volume.detach")
            row.update(state="available" if attached else "error", last_job_id=job["id"])
            job.update(status="failed", error={"code": code, "detail": "The storage said no."})
            row["last_error"] = job["error"]
            return
        row["state"] = idle
        effect()
        job["status"] = "succeeded"

    def release(self) -> None:
        """Let all jobs that are at work end."""
        with self._lock:
            self.held.clear()
            while self._ends:
                self._ends.popitem()[1]()

    def _retry(self, job_id: str) -> Json:
        job = self.jobs[job_id]
        if job.get("retried") or job["status"] != "failed":
            raise Refused("job-not-retryable")
        job["retried"] = True
        volume = self.volumes[job["volume_id"]]
        return self._job(job["kind"], lambda: None, volume, "creating", "available", volume_id=volume["id"])

    def _idle(self, volume_id: str, *, unusable: bool = False) -> Json:
        volume = self._of(self.volumes, volume_id, "volume-not-found")
        if volume["job_id"] is not None:
            raise Refused("volume-busy", job_id=volume["job_id"])
        if volume["state"] == "error" and not unusable:
            raise Refused("volume-unusable")
        return volume

    # --- volumes -----------------------------------------------------------------------------------------

    def _create(self, body: Json) -> Json:
        if any(one["name"] == body["name"] for one in self.volumes.values()):
            raise Refused("name-taken")
        if body.get("backend", "local") not in [one["name"] for one in self.backends]:
            raise Refused("unknown-backend")
        if body["size"] > 100 * GIB:
            raise Refused("quota-exceeded", quota="bytes", left=0, requested=body["size"])
        source, filesystem, kind = None, body.get("filesystem"), "volume.create"
        if (snapshot_id := body.get("from_snapshot")) is not None:
            source, kind = {"snapshot_id": snapshot_id, "volume_id": None}, "snapshot.clone"
            filesystem = self.volumes[self._free(snapshot_id)["volume_id"]]["filesystem"]
        if (volume_id := body.get("from_volume")) is not None:
            source, kind = {"snapshot_id": None, "volume_id": volume_id}, "volume.clone"
            filesystem = self._idle(volume_id)["filesystem"]
        volume = {
            "id": str(uuid4()),
            "name": body["name"],
            "size": body["size"],
            "backend": body.get("backend", "local"),
            "labels": body.get("labels", {}),
            "autogrow": body.get("autogrow"),
            "source": source,
            "filesystem": filesystem,
            "filesystem_grown_to": body["size"],
            "filesystem_error": None,
            "filesystem_size": None,
            "filesystem_used": None,
            "inodes": None,
            "inodes_used": None,
            "last_error": None,
            "last_job_id": None,
            "created_at": NOW,
            "number": len(self.jobs),
        }
        self.volumes[volume["id"]] = volume
        return self._job(kind, lambda: None, volume, "creating", "available", volume_id=volume["id"])

    def _expand(self, volume_id: str, size: int) -> Json:
        volume = self._idle(volume_id)
        if size < volume["size"]:
            raise Refused("shrink-refused")
        if size > 100 * GIB:
            raise Refused("backend-overcommitted", requested=size)

        def grow() -> None:
            volume["size"] = size
            if self.grows or not self._holders(volume_id):
                volume["filesystem_grown_to"] = size

        return self._job("volume.expand", grow, volume, "expanding", "available", volume_id=volume_id)

    def _delete(self, volume_id: str) -> Json:
        volume = self._idle(volume_id, unusable=True)
        if any(one["volume_id"] == volume_id for one in self.snapshots.values()):
            raise Refused("volume-has-snapshots")
        self._refuse_attached(self._holders(volume_id))
        remove = lambda: self.volumes.pop(volume_id)  # noqa: E731
        return self._job("volume.delete", remove, volume, "deleting", "gone", volume_id=volume_id)

    # --- snapshots ---------------------------------------------------------------------------------------

    def _take(self, volume_id: str, body: Json) -> Json:
        volume = self._idle(volume_id)
        if any((one["volume_id"], one["name"]) == (volume_id, body["name"]) for one in self.snapshots.values()):
            raise Refused("name-taken")
        snapshot = {"id": str(uuid4()), "volume_id": volume_id, "size": volume["size"], "created_at": NOW, **body}
        snapshot["number"] = len(self.jobs)
        self.snapshots[snapshot["id"]] = snapshot
        volume.update(state="snapshotting")

        def free() -> None:
            volume.update(state="available", job_id=None)

        ids = {"volume_id": volume_id, "snapshot_id": snapshot["id"]}
        job = self._job("snapshot.take", free, snapshot, "taking", "ready", **ids)
        if self.jobs[job["id"]]["status"] == "queued":
            volume["job_id"] = job["id"]
        else:
            free()
        return job

    def _free(self, snapshot_id: str) -> Json:
        snapshot = self._of(self.snapshots, snapshot_id, "snapshot-not-found")
        if snapshot["job_id"] is not None:
            raise Refused("snapshot-busy", job_id=snapshot["job_id"])
        return snapshot

    def _delete_snapshot(self, snapshot_id: str) -> Json:
        snapshot = self._free(snapshot_id)
        remove = lambda: self.snapshots.pop(snapshot_id)  # noqa: E731
        return self._job("snapshot.delete", remove, snapshot, "deleting", "gone", snapshot_id=snapshot_id)

    # --- attachments -------------------------------------------------------------------------------------

    def _holders(self, volume_id: str) -> list[Json]:
        return [one for one in self.attachments.values() if one["volume_id"] == volume_id]

    def _refuse_attached(self, found: list[Json]) -> None:
        for one in found:
            raise Refused("volume-attached", node=one["node"], holder=one["holder"], since=NOW)

    def _attachments_of(self, volume_id: str, params: Json) -> Json:
        self._of(self.volumes, volume_id, "volume-not-found")
        return {"items": self._holders(volume_id)[: int(params["limit"])], "next_cursor": None}

    def _attach(self, volume_id: str, body: Json) -> Json:
        volume, found = self._idle(volume_id), self._holders(volume_id)
        if body["node"] not in self.nodes:
            raise Refused("unknown-node")
        same = [one for one in found if (one["node"], one["holder"]) == (body["node"], body["holder"])]
        self._refuse_attached([one for one in found if one["node"] != body["node"]])
        self._refuse_attached([one for one in same if (one["mode"], one["path"]) != (body["mode"], body["path"])])
        row = {"id": str(uuid4()), "volume_id": volume_id, "state": "attaching", **body} if not same else same[0]
        self.attachments[row["id"]] = row

        def done() -> None:
            row["state"] = "attached"
            volume.update(filesystem_size=volume["size"], filesystem_used=4096, inodes=65536, inodes_used=11)

        return self._job("volume.attach", done, volume, "attaching", "available", volume_id=volume_id)

    def _detach(self, volume_id: str, attachment_id: str) -> Json:
        volume = self._idle(volume_id)
        self._of(self.attachments, attachment_id, "attachment-not-found")
        remove = lambda: self.attachments.pop(attachment_id)  # noqa: E731
        return self._job("volume.detach", remove, volume, "detaching", "available", volume_id=volume_id)
