"""The cookies of a browser's session, and when they count: its token, and the project that it shows to a system key.

A browser sends a cookie whoever has made it send the request. So a cookie counts only if the browser says that a page
of this API has: by `Sec-Fetch-Site`, or by `Origin` where it does not send that. Routes of the API also want
`X-Cistern-Session: 1`, which a page of another origin cannot add without being refused by the browser.
"""

from typing import Final
from urllib.parse import urlsplit

from starlette.responses import Response

from api.request_headers import RequestHeaders
from api.sites import LOOPBACK_HOSTS, without_port

#: A browser accepts this name only with `Secure`, for this host only, and for all of its paths.
_NAME: Final = "__Host-cistern"
#: The name on loopback without TLS, where a browser does not take `Secure` for granted.
_LOOPBACK_NAME: Final = "cistern"
_PROJECT: Final = "-project"
#: Says that a script has sent the request.
MARK: Final = b"x-cistern-session"


def session_token(headers: RequestHeaders) -> str | None:
    """Return the token in the cookie of a request; None if there is none, or more than one."""
    return _cookie(headers, _name(headers))


def chosen_project(headers: RequestHeaders) -> str | None:
    """Return the name of the project that the browser has chosen; None if it has chosen none."""
    return _cookie(headers, _name(headers) + _PROJECT)


def _cookie(headers: RequestHeaders, name: str) -> str | None:
    pairs = (pair.strip().partition("=") for pair in headers.get(b"cookie", b"").decode("latin-1").split(";"))
    values = [value for found, _, value in pairs if found == name]
    return values[0] if len(values) == 1 else None


def is_read_by_own_page(headers: RequestHeaders) -> bool:
    """Return whether a browser loads a page: for itself, or for a script of a page of this API."""
    if headers.get(b"sec-fetch-mode", b"navigate") == b"navigate":
        return True  # in this case the browser shows the page, and nobody else can read it
    return _is_same_origin(headers)


def is_sent_by_own_page(headers: RequestHeaders, *, with_mark: bool) -> bool:
    """Return whether a page of this API has sent the request; ``with_mark`` only if a script has."""
    return _is_same_origin(headers) and (not with_mark or headers.get(MARK) == b"1")


def set_session(response: Response, headers: RequestHeaders, token: str) -> None:
    """Give the browser the cookie of a new session; it forgets it when it is closed."""
    name = _name(headers)
    response.set_cookie(name, token, secure=name == _NAME, httponly=True, samesite="strict")


def set_project(response: Response, headers: RequestHeaders, name: str) -> None:
    """Have the browser store the name of the chosen project, for as long as the session lasts."""
    cookie = _name(headers)
    response.set_cookie(cookie + _PROJECT, name, secure=cookie == _NAME, httponly=True, samesite="strict")


def clear_session(response: Response, headers: RequestHeaders) -> None:
    """Have the browser delete the cookies."""
    name = _name(headers)
    for cookie in (name, name + _PROJECT):
        response.delete_cookie(cookie, secure=name == _NAME, httponly=True, samesite="strict")


def _is_same_origin(headers: RequestHeaders) -> bool:
    site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
    if site is not None:
        return site == b"same-origin"
    host = headers.get(b"host", b"").lower()
    return origin is not None and urlsplit(origin.lower()).netloc == host


def _name(headers: RequestHeaders) -> str:
    """Return the name of the cookie. The API is reached without TLS on loopback only: elsewhere a proxy adds it."""
    host = headers.get(b"host", b"").decode("latin-1").lower()
    return _LOOPBACK_NAME if without_port(host) in LOOPBACK_HOSTS else _NAME
