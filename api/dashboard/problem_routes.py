"""The routes ``/problems``: cause and remedy of each code, as JSON and, for browsers, as pages."""

from collections.abc import Iterator
from typing import Final

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from api.dashboard.rendering import page
from api.explanations import PROBLEM_EXPLANATIONS
from api.job_codes import ALL_EXPLANATIONS
from api.openapi import errors
from api.problems import PROBLEM_TYPES, TYPES_PATH, http_type

#: The format of the response depends on what the client accepts.
_VARY: Final = {"Vary": "Accept"}

router = APIRouter(prefix=TYPES_PATH, tags=["problems"])


class ProblemTypeOut(BaseModel):
    """One code: that of a response, or of a job or an item of a bulk job."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": f"{TYPES_PATH}/volume-busy",
                    "code": "volume-busy",
                    "status": 409,
                    "title": "Volume is busy",
                    **PROBLEM_EXPLANATIONS["volume-busy"]._asdict(),
                }
            ]
        },
    )

    type: str
    code: str
    status: int | None = Field(description="Null for a code that only jobs and items of bulk jobs have.")
    title: str
    cause: str
    remedy: str


class ProblemTypesOut(BaseModel):
    """All codes, sorted."""

    items: list[ProblemTypeOut]


def _explained() -> Iterator[ProblemTypeOut]:
    for code, (cause, remedy) in sorted(ALL_EXPLANATIONS.items()):
        known = PROBLEM_TYPES.get(code)
        title = code.replace("-", " ").capitalize() if known is None else known.title
        status = None if known is None else known.status
        path = f"{TYPES_PATH}/{code}"
        yield ProblemTypeOut(type=path, code=code, status=status, title=title, cause=cause, remedy=remedy)


_EXPLAINED: Final = {one.code: one for one in _explained()}


def _wants_page(request: Request) -> bool:
    """Return whether the client accepts HTML, as browsers do; others accept JSON or anything."""
    return "text/html" in request.headers.get("Accept", "")


@router.get("", summary="List the problem types", responses=errors(), response_model=ProblemTypesOut)
async def list_problems(request: Request, response: Response) -> ProblemTypesOut | Response:
    """List the codes of every response, job and item; as a page for a browser."""
    response.headers.update(_VARY)
    items = list(_EXPLAINED.values())
    if _wants_page(request):
        return page(request, "explanations.html", headers=_VARY, items=items)
    return ProblemTypesOut(items=items)


@router.get("/{code}", summary="Get a problem type", responses=errors(http_type(404)), response_model=ProblemTypeOut)
async def get_problem(code: str, request: Request, response: Response) -> ProblemTypeOut | Response:
    """Return the cause and the remedy of one code; as a page for a browser."""
    if code not in _EXPLAINED:
        raise HTTPException(404)
    response.headers.update(_VARY)
    if _wants_page(request):
        return page(request, "explanation.html", headers=_VARY, one=_EXPLAINED[code])
    return _EXPLAINED[code]
