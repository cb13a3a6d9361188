"""An API client that uses only the API's published port."""

from typing import Any, Self

import httpx

from domain.jobs.states import ENDED
from tests.compose.stack import TIMEOUT_SECONDS, until

MIB = 1 << 20


class ApiClient:
    """Sends requests, and waits for their jobs."""

    def __init__(self, port: int) -> None:
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT_SECONDS, trust_env=False)

    def use_key(self, text: str) -> None:
        self._http.headers["Authorization"] = f"Bearer {text}"

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
        response = self._http.post(f"/api/v1{address}", json=body)
        assert response.is_success, response.text
        return response

    def job(self, job_id: str) -> dict[str, Any]:
        return dict(self._get(f"/jobs/{job_id}"))

    def ended(self, job_id: str) -> dict[str, Any]:
        """Wait until the job has ended, assert that it succeeded, and return it."""
        until(lambda: self.job(job_id)["status"] in ENDED, f"job {job_id} has ended")
        job = self.job(job_id)
        assert job["status"] == "succeeded", job
        return job

    def all(self, address: str) -> list[dict[str, Any]]:
        """Return all items of a list, fetched page by page."""
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
        response = self._http.get(f"/api/v1{address}", params=query)
        assert response.is_success, response.text
        return response.json()
