"""Where the ``type`` of a problem leads: what it means, for people who have met one."""

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, ConfigDict

from api.dependencies import NoQuery
from api.openapi import refusals
from api.problems import CATALOGUE, ProblemType, http_type

router = APIRouter(prefix="/problems", tags=["problems"], dependencies=[NoQuery])


class ProblemTypeOut(BaseModel):
    """A reason for which requests are refused."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"type": "/problems/volume-busy", "code": "volume-busy", "status": 409, "title": "Volume is busy"}
            ]
        }
    )

    type: str
    code: str
    status: int
    title: str


class ProblemTypesOut(BaseModel):
    """All of them, by code."""

    items: list[ProblemTypeOut]


@router.get("", operation_id="list_problems", summary="List the problem types", responses=refusals())
async def list_problems() -> ProblemTypesOut:
    """List every reason for which a request may be refused."""
    return ProblemTypesOut(items=[_shown(problem) for problem in CATALOGUE.values()])


@router.get("/{code}", operation_id="get_problem", summary="Explain a problem type", responses=refusals(http_type(404)))
async def get_problem(code: str) -> ProblemTypeOut:
    """Explain one."""
    if code not in CATALOGUE:
        raise HTTPException(404)
    return _shown(CATALOGUE[code])


def _shown(problem: ProblemType) -> ProblemTypeOut:
    return ProblemTypeOut(type=problem.uri, code=problem.code, status=problem.status, title=problem.title)
