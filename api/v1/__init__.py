"""Version 1: every change is a job, answered with 202 and the way to it."""

from fastapi import APIRouter

from api.v1.backends import router as backends_router
from api.v1.jobs import router as jobs_router
from api.v1.volumes import router as volumes_router

PREFIX = "/api/v1"

router = APIRouter(prefix=PREFIX)
router.include_router(volumes_router)
router.include_router(jobs_router)
router.include_router(backends_router)
