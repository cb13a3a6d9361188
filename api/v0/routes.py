"""The router of version 0."""

from fastapi import APIRouter, FastAPI

from api.v0.snapshots import router as snapshots_router
from api.v0.volumes import router as volumes_router
from api.v0.wait import JobFailed, JobStillRunning, render_failed, render_still_running

router = APIRouter(prefix="/api/v0")
router.include_router(volumes_router)
router.include_router(snapshots_router)


def install(app: FastAPI) -> None:
    """Register the handlers for jobs that have failed or not ended in time."""
    app.add_exception_handler(JobFailed, render_failed)
    app.add_exception_handler(JobStillRunning, render_still_running)
