"""Cistern's API, as one call of the orchestrator uses it: within a few seconds."""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final
from uuid import UUID

from api.cli.client import ApiCallFailed, ApiClient, JsonObject, when_free
from api.csi.errors import at_work, job_failure
from domain.jobs.states import ENDED, JobStatus

#: How long a call waits for jobs. Orchestrators give up after ten or more seconds, and call again in any case.
PATIENCE_SECONDS: Final = 3.0
#: Limit for each request to the API, which it may hold for as long as the patience.
REQUEST_SECONDS: Final = PATIENCE_SECONDS + 2
_PAUSE_SECONDS: Final = 0.1


class Api:
    """The API during one call. Its methods raise `ApiCallFailed`, or `CallRejected` for a job."""

    def __init__(self, client: ApiClient, node: str, *, patience: float, pause: Callable[[float], None]) -> None:
        """Begin a call. ``node`` is what `cistern node` calls this host."""
        self.node = node
        self._client = client
        self._pause = pause
        self._end = time.monotonic() + patience

    def get(self, path: str, **params: Any) -> JsonObject:
        """Get one object, or one page of a list."""
        return self._client.get(path, **params)

    def find(self, path: str) -> JsonObject | None:
        """Get one object; None if there is none."""
        try:
            return self._client.get(path)
        except ApiCallFailed as error:
            if error.problem_code.endswith("not-found"):
                return None
            raise

    def list_all(self, path: str, **filters: Any) -> list[JsonObject]:
        """Return all objects of a list that match: of a name, or of one volume."""
        return self._client.list_all(path, **filters)

    def carry_out(self, method: str, path: str, body: JsonObject | None = None) -> JsonObject:
        """Request a job and return it when it has succeeded. Another job that is in the way is waited for.

        Raises:
            CallRejected: the job has failed, or one of the two is still at work.
        """
        request = partial(self._client.call, method, path, body)
        return self.succeeded(when_free(lambda: request(headers=self._preference()), self._follow))

    def _follow(self, job_id: str) -> None:
        self.ended(job_id)
        self.wait(job_id)  # until what it held is free: its end is recorded, or about to be

    def succeeded(self, job: JsonObject) -> JsonObject:
        """Wait for the success of a job.

        Raises:
            CallRejected: it has failed, or is still at work.
        """
        if job["status"] not in ENDED:
            job = self.ended(job["id"]) or job
        if job["status"] == JobStatus.SUCCEEDED:
            return job
        raise job_failure(job)

    def ended(self, job_id: str) -> JsonObject | None:
        """Wait for the end of a job and return it; None if it is gone.

        Raises:
            CallRejected: it is still at work.
        """
        while True:
            try:
                job = self._client.call("GET", f"/jobs/{job_id}", headers=self._preference())
            except ApiCallFailed as error:
                if error.problem_code == "job-not-found":
                    return None
                raise
            if job["status"] in ENDED:
                return job
            self.wait(job_id)

    def wait(self, job_id: object) -> None:
        """Make a short pause before the next look at a job.

        Raises:
            CallRejected: the call has taken long enough.
        """
        if time.monotonic() >= self._end:
            raise at_work(job_id)
        self._pause(_PAUSE_SECONDS)

    def _preference(self) -> dict[str, str]:
        left = math.floor(self._end - time.monotonic())
        return {"Prefer": f"wait={left}"} if left > 0 else {}


def valid_id(text: str) -> str | None:
    """Return an id as the API writes it; None if it is none, so that nothing has it."""
    try:
        return str(UUID(text))
    except ValueError:
        return None
