"""What the parts of ``cistern demo`` share: requests, jobs, and how they fail."""

import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from api.cli.http import HttpClient, Response
from domain.errors import CisternError
from domain.jobs.states import ENDED
from domain.tasks import in_daemon_thread

_REQUEST_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.1

Job = dict[str, Any]


class DemoFailed(CisternError):
    """The demo found a job or a file that is not as expected."""

    code = "demo-failed"


class DemoApi:
    """The API of the demo's stack. Requests for jobs wait for their ends."""

    def __init__(self, url: str, key: str) -> None:
        headers = {"Prefer": "wait=10", "Authorization": f"Bearer {key}"}
        self._http = HttpClient(f"{url}/api/v1", headers, timeout=_REQUEST_SECONDS)

    async def get(self, path: str, **options: Any) -> Job:
        """Return what is at a path."""
        return _object(await in_daemon_thread(partial(self._http.request, "GET", path, **options)), 200, path)

    async def until(self, path: str, condition: Callable[[Job], bool]) -> None:
        """Wait until what is at a path satisfies a condition."""
        while True:
            if condition(await self.get(path)):
                return
            await asyncio.sleep(_POLL_SECONDS)

    async def request(self, method: str, path: str, body: Any = None, **options: Any) -> Job:
        """Request a job, and return it."""
        call = partial(self._http.request, method, path, body=body, **options)
        return _object(await in_daemon_thread(call), 202, path)

    async def succeeded(self, job: Job) -> Job:
        """Wait for the end of a job.

        Raises:
            DemoFailed: it did not succeed.
        """
        while job["status"] not in ENDED:
            job = await self.get(f"/jobs/{job['id']}")
        require_success(job)
        return job


def require_success(job: Job) -> None:
    """Require that a job has not ended otherwise than with success.

    Raises:
        DemoFailed: it has.
    """
    if job["status"] in ENDED and job["status"] != "succeeded":
        raise DemoFailed(f"job {job['id']} ({job.get('kind')}) {job['status']}: {job.get('error')}")


def _object(response: Response, status: int, path: str) -> Job:
    """Return the object in the response, which must have ``status``."""
    if response.status != status:
        raise DemoFailed(f"{path}: {response.status} {response.content[:300].decode(errors='replace')}")
    body: Job = json.loads(response.content)
    return body
