"""Reads the metrics that a process serves."""

from collections.abc import Mapping

import httpx
from prometheus_client.parser import text_string_to_metric_families

#: Values by name and labels, as in ``jobs_total kind=volume.create outcome=failed``.
Samples = Mapping[str, float]


async def scrape(port: int) -> str:
    """Return what a process serves on a port of loopback."""
    async with httpx.AsyncClient(timeout=30) as client:
        response = await client.get(f"http://127.0.0.1:{port}/metrics")
        assert response.status_code == 200
        return response.text


async def samples(port: int) -> Samples:
    """Return the values of all metrics."""
    return {
        " ".join([sample.name, *(f"{label}={value}" for label, value in sorted(sample.labels.items()))]): sample.value
        for family in text_string_to_metric_families(await scrape(port))
        for sample in family.samples
    }
