"""The router of version 1."""

from fastapi import APIRouter

from api.v1.backends import router as backends_router
from api.v1.bulk import router as bulk_router
from api.v1.events import router as events_router
from api.v1.jobs import router as jobs_router
from api.v1.schedules import router as schedules_router
from api.v1.snapshots import router as snapshots_router
from api.v1.volumes import router as volumes_router

PREFIX = "/api/v1"

router = APIRouter(prefix=PREFIX)
router.include_router(bulk_router)
router.include_router(volumes_router)
router.include_router(snapshots_router)
router.include_router(jobs_router)
router.include_router(schedules_router)
router.include_router(events_router)
router.include_router(backends_router)
