"""Who may use which route: one table, which the gate reads before any route is looked up.

A route that is not in the table is refused, so that none can be reached by being forgotten here.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, Protocol

from starlette.types import Scope

from api.dependencies import V0_PATH, V1_PATH
from api.problems import KEY_INVALID, KEY_MISSING, NO_KEYS, ROLE_INSUFFICIENT, ProblemType, http_type, type_of
from api.request_headers import RequestHeaders
from api.session_cookies import chosen_project, is_read_by_own_page, is_sent_by_own_page, session_token
from domain.access.model import Principal, Role
from domain.access.service import KeyService
from domain.access.sessions import SessionService
from domain.errors import CisternError, ProjectNotFound
from domain.jobs.kinds import JobKind
from domain.projects.service import ProjectService

#: The name of the scheme in the OpenAPI document.
SECURITY_SCHEME: Final = "key"

#: Names the project that a request of a system key acts in.
PROJECT_HEADER: Final = b"cistern-project"

#: The methods of HTTP. Metrics and spans have one value for all others: clients may send any text.
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_VIEWER, _OPERATOR, _OWNER, _SYSTEM = Role
_V1: Final[Mapping[str, Mapping[str, Role]]] = {
    "/volumes": {"GET": _VIEWER, "POST": _OPERATOR},
    "/volumes/{}": {"GET": _VIEWER, "PATCH": _OPERATOR, "DELETE": _OWNER},
    "/volumes/{}/expand": {"POST": _OPERATOR},
    "/volumes/{}/history": {"GET": _VIEWER},
    "/volumes/{}/snapshots": {"GET": _VIEWER, "POST": _OPERATOR},
    "/volumes/expand": {"POST": _VIEWER},  # the route requires an owner unless it is a dry run
    "/volumes/snapshots": {"POST": _OWNER},
    "/volumes/{}/attachments": {"GET": _VIEWER, "POST": _OPERATOR},
    "/volumes/{}/attachments/{}": {"DELETE": _OPERATOR},  # the route requires an owner for `force`
    "/attachments": {"GET": _VIEWER},
    "/nodes": {"GET": _VIEWER},
    "/snapshots": {"GET": _VIEWER},
    "/snapshots/{}": {"GET": _VIEWER, "DELETE": _OWNER},
    "/snapshots/{}/restore": {"POST": _OWNER},
    "/jobs": {"GET": _VIEWER},
    "/jobs/{}": {"GET": _VIEWER},
    "/jobs/cancel": {"POST": _OWNER},
    "/jobs/retry": {"POST": _OWNER},
    "/jobs/{}/events": {"GET": _VIEWER},
    "/jobs/{}/items": {"GET": _VIEWER},
    "/jobs/{}/cancel": {"POST": _OPERATOR},
    "/jobs/{}/retry": {"POST": _OPERATOR},  # the route requires the role of the retried request
    "/schedules": {"GET": _VIEWER, "POST": _OWNER},
    "/schedules/{}": {"GET": _VIEWER, "PATCH": _OWNER, "DELETE": _OWNER},
    "/schedules/{}/runs": {"GET": _VIEWER},
    "/schedules/{}/run": {"POST": _OWNER},
    "/webhooks": {"GET": _OWNER, "POST": _OWNER},
    "/webhooks/{}": {"PATCH": _OWNER, "DELETE": _OWNER},
    "/webhooks/{}/test": {"POST": _OWNER},
    "/backends": {"GET": _VIEWER},
    "/workers": {"GET": _VIEWER},
    "/audit": {"GET": _SYSTEM},
    "/projects": {"GET": _VIEWER, "POST": _SYSTEM},
    "/projects/{}": {"GET": _VIEWER, "PATCH": _SYSTEM},
    "/keys": {"GET": _OWNER, "POST": _OWNER},  # the route requires the role of the new key
    "/keys/{}": {"DELETE": _OWNER},
    "/keys/{}/rotate": {"POST": _OWNER},
}
#: The pages of the dashboard. Each shows what the role may see, and offers what it may do.
PAGES: Final[Mapping[str, Mapping[str, Role | None]]] = {
    "/": {"GET": _VIEWER},
    "/volumes": {"GET": _VIEWER},
    "/volumes/{}": {"GET": _VIEWER},
    "/jobs": {"GET": _VIEWER},
    "/jobs/{}": {"GET": _VIEWER},
    "/schedules": {"GET": _VIEWER},
    "/schedules/{}": {"GET": _VIEWER},
    "/schedules/preview": {"GET": _VIEWER},
    "/settings": {"GET": _VIEWER},
    "/project": {"POST": Role.SYSTEM},
    "/sign-in": {"GET": None, "POST": None},
    "/sign-out": {"POST": None},
}
_V0: Final[Mapping[str, Mapping[str, Role]]] = {
    "/volumes": {"GET": _VIEWER, "POST": _OPERATOR},
    "/volumes/{}": {"GET": _VIEWER, "DELETE": _OWNER},
    "/volumes/{}/expand": {"POST": _OPERATOR},
    "/volumes/{}/snapshots": {"POST": _OPERATOR},
    "/volumes/expand": {"POST": _OWNER},
    "/snapshots": {"GET": _VIEWER},
    "/snapshots/{}": {"GET": _VIEWER, "DELETE": _OWNER},
    "/snapshots/{}/restore": {"POST": _OWNER},
}
#: Routes without any data of users, open to every client.
_WITHOUT_KEY: Final = (
    *("/healthz", "/readyz", "/problems", "/problems/{}", "/openapi.json", "/docs"),
    *("/docs/swagger-ui-bundle.js", "/docs/docs.js", "/docs/swagger-ui.css", "/docs/favicon-32x32.png"),
    "/static/{}",
)

#: The least role that each route needs, by path and method; None: no key is needed.
ROUTES: Final[Mapping[str, Mapping[str, Role | None]]] = {
    **{path: {"GET": None} for path in _WITHOUT_KEY},
    **PAGES,
    **{V1_PATH + path: roles for path, roles in _V1.items()},
    **{V0_PATH + path: roles for path, roles in _V0.items()},
}
#: The rows, fixed paths before those with parameters: the first that matches counts.
_ROWS: Final = sorted(ROUTES, key=lambda path: path.count("{}"))
#: One expression for all rows, whose groups are in their order: looking at them one by one takes 20 microseconds.
_PATH: Final = re.compile("|".join(f"({re.escape(path).replace(re.escape('{}'), '[^/]+')})" for path in _ROWS))

#: Routes where the cookie of a session counts without the header that only a script can send: an `EventSource` cannot,
#: nor can a form.
_WITHOUT_MARK: Final = frozenset({V1_PATH + "/jobs/{}/events", "/sign-in", "/sign-out", "/project"})

#: Kinds of jobs whose requests need no more than an operator.
_OPERATORS_KINDS: Final = frozenset(
    {
        *(JobKind.VOLUME_CREATE, JobKind.VOLUME_CLONE, JobKind.VOLUME_EXPAND),
        *(JobKind.SNAPSHOT_TAKE, JobKind.SNAPSHOT_CLONE),
        *(JobKind.VOLUME_ATTACH, JobKind.VOLUME_DETACH),
    }
)


class AccessRefused(CisternError):
    """The request has no key that may do this."""

    code = "access-refused"

    def __init__(self, problem: ProblemType, detail: str) -> None:
        super().__init__(detail)
        self.problem = problem


class Accounts(Protocol):
    """The services that know who a request acts for."""

    @property
    def keys(self) -> KeyService:
        """The keys."""

    @property
    def sessions(self) -> SessionService:
        """The sessions of browsers, in which a key was exchanged for a cookie."""

    @property
    def projects(self) -> ProjectService:
        """The projects."""


async def admit(scope: Scope, headers: RequestHeaders, accounts: Accounts) -> None:
    """Set `state.principal` to who the request acts for; None if the route needs no key, and none is given.

    Raises:
        AccessRefused: there is no such route, no valid key, the key's role is not sufficient, or there is no such
            project for it.
        DatabaseUnavailable: the key cannot be looked up.
    """
    row = row_of(scope["path"])
    if row is None:
        raise AccessRefused(http_type(404), "There is nothing at this path.")
    roles = ROUTES[row]
    # The router answers 405 to a method that the path does not have, to anyone who may use another one.
    other = None if None in roles.values() else Role.VIEWER
    needed = roles.get("GET" if scope["method"] == "HEAD" else scope["method"], other)
    text = _bearer(headers)
    if text is None:
        principal = await _of_session(scope, headers, row, accounts.sessions)
        if principal is None and needed is None:
            scope["state"]["principal"] = None
            return
        if principal is None:
            raise await _missing(accounts.keys)
    else:
        principal = await accounts.keys.authenticate(text)
        if principal is None:
            raise AccessRefused(KEY_INVALID, "The key is unknown, revoked or expired.")
    scope["state"]["principal"] = principal
    require_role(principal, needed)
    if PROJECT_HEADER in headers:
        scope["state"]["principal"] = await _in_project(headers[PROJECT_HEADER], principal, accounts.projects)
    elif principal.session is not None and principal.role is Role.SYSTEM:
        scope["state"]["principal"] = await _in_chosen_project(chosen_project(headers), principal, accounts.projects)


async def _missing(keys: KeyService) -> AccessRefused:
    if await keys.any():
        return AccessRefused(KEY_MISSING, "Send a key: `Authorization: Bearer cst_...`.")
    return AccessRefused(NO_KEYS, "There is no key yet: `cistern keys create NAME --role system` makes the first.")


async def _of_session(scope: Scope, headers: RequestHeaders, row: str, sessions: SessionService) -> Principal | None:
    """Return who the session of a request acts for; None if it has none, or its cookie does not count here."""
    token = session_token(headers)
    if token is None:
        return None
    if scope["method"] in ("GET", "HEAD") and row in PAGES:
        counts = is_read_by_own_page(headers)
    else:
        counts = is_sent_by_own_page(headers, with_mark=row not in _WITHOUT_MARK)
    return await sessions.authenticate(token) if counts else None


async def _in_project(header: bytes, principal: Principal, projects: ProjectService) -> Principal:
    """Return the principal in the project that the request names; a system key may name any."""
    name = header.decode("latin-1")
    if name == principal.project.name:
        return principal
    project = await projects.find(name) if principal.role is Role.SYSTEM else None
    if project is None:
        raise AccessRefused(type_of(ProjectNotFound), f"There is no project named {name!r} for this key.")
    return replace(principal, project=project)


async def _in_chosen_project(name: str | None, principal: Principal, projects: ProjectService) -> Principal:
    """Return the principal in the project that the browser has chosen; in that of the key if there is no such one."""
    project = None if name is None else await projects.find(name)
    return principal if project is None else replace(principal, project=project)


def require_role(principal: Principal, needed: Role | None) -> None:
    """Require that a principal has at least this role.

    Raises:
        AccessRefused: it has not.
    """
    if needed is not None and not principal.role.includes(needed):
        detail = f"This needs the role {needed.value!r}; the key {principal.name!r} has {principal.role.value!r}."
        raise AccessRefused(ROLE_INSUFFICIENT, detail)


def role_to_request(kind: str) -> Role:
    """Return the least role that may request a job of this kind."""
    return Role.OPERATOR if kind in _OPERATORS_KINDS else Role.OWNER


def openapi_security(method: str, path: str) -> list[dict[str, list[str]]]:
    """Return the `security` of a route of the OpenAPI document."""
    row = row_of(path)
    return [] if row is None or ROUTES[row].get(method.upper()) is None else [{SECURITY_SCHEME: []}]


def row_of(path: str) -> str | None:
    """Return the path of the table that the path of a request belongs to; None if there is none."""
    # Most requests are for a fixed path, or for one that ends with an id: these take a tenth of the expression's time.
    if path in ROUTES:
        return path
    parent, _, name = path.rpartition("/")
    if name and (row := parent + "/{}") in ROUTES:
        return row
    match = _PATH.fullmatch(path)
    return None if match is None or match.lastindex is None else _ROWS[match.lastindex - 1]


def _bearer(headers: RequestHeaders) -> str | None:
    """Return the key in the `Authorization` header; one of another scheme, or two headers, are no key."""
    given = headers.get(b"authorization")
    if given is None:
        return None
    scheme, _, text = given.decode("latin-1").partition(" ")
    return text.strip() if scheme.lower() == "bearer" else ""
