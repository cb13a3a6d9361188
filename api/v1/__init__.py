"""Version 1: every change is a job, answered with 202 and the way to it."""

from fastapi import APIRouter

from api.v1.backends import router as backends
from api.v1.jobs import router as jobs
from api.v1.volumes import router as volumes

PREFIX = "/api/v1"

router = APIRouter(prefix=PREFIX)
router.include_router(volumes)
router.include_router(jobs)
router.include_router(backends)
