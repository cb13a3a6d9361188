"""Somebody who knows nothing of containers, only the published port of the API."""

from typing import Any, Self

import httpx

from domain.jobs.states import ENDED
from tests.compose.stack import PATIENCE, until

MIB = 1 << 20


class Customer:
    """Asks, and waits for the ends of its jobs."""

    def __init__(self, port: int) -> None:
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def wait_until_ready(self) -> None:
        until(self._is_ready, "/readyz answers 200")

    def _is_ready(self) -> bool:
        try:
            return self._http.get("/readyz", timeout=5).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def post(self, address: str, body: dict[str, Any] | None = None) -> httpx.Response:
        answer = self._http.post(f"/api/v1{address}", json=body)
        assert answer.is_success, answer.text
        return answer

    def job(self, job_id: str) -> dict[str, Any]:
        return dict(self._get(f"/jobs/{job_id}"))

    def ended(self, job_id: str) -> dict[str, Any]:
        """The job, once it has ended well."""
        until(lambda: self.job(job_id)["status"] in ENDED, f"the end of job {job_id}")
        job = self.job(job_id)
        assert job["status"] == "succeeded", job
        return job

    def all(self, address: str) -> list[dict[str, Any]]:
        """A whole list, page by page."""
        items: list[dict[str, Any]] = []
        cursor: str | None = ""
        while cursor is not None:
            page = self._get(address, limit=200, **({"cursor": cursor} if cursor else {}))
            items += page["items"]
            cursor = page["next_cursor"]
        return items

    def sizes(self) -> dict[str, int]:
        return {volume["id"]: volume["size"] for volume in self.all("/volumes")}

    def _get(self, address: str, **query: Any) -> Any:
        answer = self._http.get(f"/api/v1{address}", params=query)
        assert answer.is_success, answer.text
        return answer.json()
