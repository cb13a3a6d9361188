"""What the page of settings shows: the project and its limits; to owners its keys; to system keys the audit log."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from api.dashboard.queries import AuditPageQuery
from domain.access.model import ApiKey, Principal, Role
from domain.access.repository import KeyScope
from domain.audit.model import AuditEntry
from domain.audit.repository import AuditFilter
from domain.db.pagination import MAX_LIMIT, PageRequest
from domain.services import Services


@dataclass(frozen=True)
class Limit:
    """What the project has of something, and how much it may have at most."""

    name: str
    used: int
    limit: int | None
    is_size: bool


@dataclass(frozen=True)
class KeyLine:
    """A key, and whether it can be used."""

    key: ApiKey
    status: str

    @classmethod
    def of(cls, key: ApiKey) -> "KeyLine":
        """Describe a key."""
        if key.revoked_at is not None:
            return cls(key, "revoked")
        return cls(key, "expired" if key.expires_at is not None and key.expires_at <= datetime.now(UTC) else "ok")


@dataclass(frozen=True)
class SettingsPage:
    """Everything on the page of settings; None is what the viewer may not see."""

    project: str
    limits: Sequence[Limit]
    roles: Sequence[str]
    keys: Sequence[KeyLine] | None
    more_keys: bool
    entries: Sequence[AuditEntry] | None
    next_cursor: str | None


async def settings_page(services: Services, query: AuditPageQuery, principal: Principal) -> SettingsPage:
    """Read what the page of settings shows.

    Raises:
        BadCursor: the cursor is not from the audit log.
    """
    project, usage = await services.projects.get(principal.project.id)
    limits = [
        Limit(name.replace("_", " "), used, getattr(project, f"max_{name}"), is_size=name == "bytes")
        for name, used in usage._asdict().items()
    ]
    keys, entries = None, None
    if principal.role.includes(Role.OWNER):
        scope = KeyScope(principal.project.id, with_system=principal.role is Role.SYSTEM)
        keys = await services.keys.list_keys(PageRequest("keys page", limit=MAX_LIMIT), scope)
    if principal.role is Role.SYSTEM:
        filters = AuditFilter(name=query.name, action=query.action)
        entries = await services.audit.list_entries(filters, query.page_of("audit page"))
    return SettingsPage(
        project=principal.project.name,
        limits=limits,
        roles=[role.value for role in Role if principal.role.includes(role)],
        keys=None if keys is None else [KeyLine.of(key) for key in keys.items],
        more_keys=keys is not None and keys.next_cursor is not None,
        entries=None if entries is None else entries.items,
        next_cursor=None if entries is None else entries.next_cursor,
    )
