"""The routes behind the ``type`` of a problem: they explain each problem type."""

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, ConfigDict

from api.dependencies import NoQuery
from api.openapi import errors
from api.problems import PROBLEM_TYPES, ProblemType, http_type

router = APIRouter(prefix="/problems", tags=["problems"], dependencies=[NoQuery])


class ProblemTypeOut(BaseModel):
    """One problem type."""

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
    """All problem types, sorted by code."""

    items: list[ProblemTypeOut]


@router.get("", operation_id="list_problems", summary="List the problem types", responses=errors())
async def list_problems() -> ProblemTypesOut:
    """List every problem type that the API returns."""
    return ProblemTypesOut(items=[_render(problem) for problem in PROBLEM_TYPES.values()])


@router.get("/{code}", operation_id="get_problem", summary="Get a problem type", responses=errors(http_type(404)))
async def get_problem(code: str) -> ProblemTypeOut:
    """Return one problem type."""
    if code not in PROBLEM_TYPES:
        raise HTTPException(404)
    return _render(PROBLEM_TYPES[code])


def _render(problem: ProblemType) -> ProblemTypeOut:
    return ProblemTypeOut(type=problem.uri, code=problem.code, status=problem.status, title=problem.title)
