"""Storage backends: the response."""

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.jobs import FailureOut

BACKEND_EXAMPLE: Final[dict[str, Any]] = {
    "name": "local",
    "driver": "file",
    "total": 1099511627776,
    "used": 10737418240,
    "error": None,
}


class BackendOut(BaseModel):
    """One storage backend and its capacity. Sizes are in bytes."""

    model_config = ConfigDict(json_schema_extra={"examples": [BACKEND_EXAMPLE]})

    name: str
    driver: str
    total: int | None = Field(None, description="Null if there is no limit, or if the capacity is unknown.")
    used: int | None = None
    error: FailureOut | None = Field(None, description="Why the capacity is unknown.")


class BackendsOut(BaseModel):
    """All backends, the default first."""

    items: list[BackendOut]
