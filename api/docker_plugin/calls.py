"""Calls of the API within a time: repeated while the API is away, and followed until their jobs have ended."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from threading import Event
from typing import Any, Final, TypeVar

from api.cli.client import ApiCallFailed, ApiClient, ApiUnreachable, JsonObject, when_free
from api.docker_plugin.errors import PluginError, PluginStopping
from domain.jobs.states import ENDED, JobStatus

#: Pauses between two looks at a job, and between two tries of a request.
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
_RATE_LIMITED: Final = 429

Result = TypeVar("Result")


class Deadline:
    """When a call of an engine has to be answered."""

    def __init__(self, seconds: float) -> None:
        """Begin now."""
        self._end = time.monotonic() + seconds

    @property
    def seconds_left(self) -> float:
        """The time that is left; 0 if it is over."""
        return max(0.0, self._end - time.monotonic())


class Pauses:
    """Pauses that grow, and that end with the plugin."""

    def __init__(self, stopping: Event) -> None:
        """Begin with the shortest pause."""
        self._stopping = stopping
        self._next = _FIRST_PAUSE

    def pause(self, deadline: Deadline) -> None:
        """Wait, at most until the deadline.

        Raises:
            PluginStopping: the plugin is to end.
        """
        if self._stopping.wait(min(self._next, deadline.seconds_left)):
            raise PluginStopping
        self._next = min(self._next * 1.5, _LONGEST_PAUSE)


class Calls:
    """The API, called with a deadline. All methods may raise PluginStopping and ApiCallFailed."""

    def __init__(self, api: ApiClient, stopping: Event) -> None:
        """Take the client, and the event that ends all waiting."""
        self._api = api
        self._stopping = stopping

    def send(self, deadline: Deadline, request: Callable[[ApiClient], Result]) -> Result:
        """Return the result of a request, which is repeated until the deadline while the API is away or too busy."""
        pauses = Pauses(self._stopping)
        while True:
            try:
                return request(self._api)
            except ApiCallFailed as error:
                is_passing = isinstance(error, ApiUnreachable) or error.problem.get("status") == _RATE_LIMITED
                if not is_passing or not deadline.seconds_left:
                    raise
            pauses.pause(deadline)

    def list_all(self, deadline: Deadline, path: str, **filters: Any) -> list[JsonObject]:
        """Return all objects of a list."""
        return self.send(deadline, lambda api: api.list_all(path, **filters))

    def job_at_end(self, deadline: Deadline, job_id: str) -> JsonObject:
        """Return a job when it has ended, or at the deadline as it is then."""
        pauses = Pauses(self._stopping)
        while True:
            job = self.send(deadline, lambda api: api.get(f"/jobs/{job_id}"))
            if has_ended(job) or not deadline.seconds_left:
                return job
            pauses.pause(deadline)

    def change(
        self,
        deadline: Deadline,
        method: str,
        path: str,
        body: JsonObject | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> JsonObject:
        """Return the job of a change at its end, or at the deadline; the request waits for other jobs of the volume.

        Raises:
            PluginError: another operation has held the volume until the deadline.
        """
        pauses = Pauses(self._stopping)

        def follow(job_id: str) -> None:
            self.job_at_end(deadline, job_id)
            if not deadline.seconds_left:
                raise PluginError(f"the job {job_id} still holds the volume: try again when that has ended")
            pauses.pause(deadline)

        def request() -> JsonObject:
            return self.send(deadline, lambda api: api.call(method, path, body, headers=headers or {}))

        return self.job_at_end(deadline, when_free(request, follow)["id"])

    def cancel(self, job_id: str) -> None:
        """Ask for the end of a job whose result is not wanted any more; that it has ended already does no harm."""
        with suppress(ApiCallFailed):
            self._api.call("POST", f"/jobs/{job_id}/cancel")


def has_ended(job: JsonObject) -> bool:
    """Return whether a job has ended."""
    return job["status"] in ENDED


def has_succeeded(job: JsonObject) -> bool:
    """Return whether a job has ended well."""
    return bool(job["status"] == JobStatus.SUCCEEDED)
