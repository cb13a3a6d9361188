"""What the page of settings shows: the project and its limits; to owners its keys and webhooks; to system keys more.

System keys see the other projects and the audit log.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from api.dashboard.queries import AuditPageQuery
from domain.access.model import ApiKey, Principal, Role
from domain.access.repository import KeyScope
from domain.audit.model import AuditEntry
from domain.audit.repository import AuditFilter
from domain.db.pagination import MAX_LIMIT, PageRequest
from domain.jobs.webhooks.model import EventType, Webhook
from domain.projects.model import Project
from domain.services import Services


@dataclass(frozen=True)
class Limit:
    """What the project has of something, and how much it may have at most; ``column`` has the limit."""

    name: str
    column: str
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

    project: Project
    limits: Sequence[Limit]
    roles: Sequence[str]
    keys: Sequence[KeyLine] | None
    more_keys: bool
    webhooks: Sequence[Webhook] | None
    event_types: Sequence[str]
    projects: Sequence[Project] | None
    more_projects: bool
    entries: Sequence[AuditEntry] | None
    next_cursor: str | None


async def settings_page(services: Services, query: AuditPageQuery, principal: Principal) -> SettingsPage:
    """Read what the page of settings shows.

    Raises:
        BadCursor: the cursor is not from the audit log.
    """
    project, usage = await services.projects.get(principal.project.id)
    limits = [
        Limit(name.replace("_", " "), f"max_{name}", used, getattr(project, f"max_{name}"), is_size=name == "bytes")
        for name, used in usage._asdict().items()
    ]
    keys, webhooks, projects, entries = None, None, None, None
    if principal.role.includes(Role.OWNER):
        scope = KeyScope(principal.project.id, with_system=principal.role is Role.SYSTEM)
        keys = await services.keys.list_keys(PageRequest("keys page", limit=MAX_LIMIT), scope)
        request = PageRequest("webhooks page", limit=MAX_LIMIT)
        webhooks = await services.webhooks.list_webhooks(request, project_id=principal.project.id)
    if principal.role is Role.SYSTEM:
        projects, _ = await services.projects.list_projects(PageRequest("projects page", limit=MAX_LIMIT), only=None)
        filters = AuditFilter(name=query.name, action=query.action)
        entries = await services.audit.list_entries(filters, query.page_of("audit page"))
    return SettingsPage(
        project=project,
        limits=limits,
        roles=[role.value for role in Role if principal.role.includes(role)],
        keys=None if keys is None else [KeyLine.of(key) for key in keys.items],
        more_keys=keys is not None and keys.next_cursor is not None,
        webhooks=None if webhooks is None else webhooks.items,
        event_types=[*EventType],
        projects=None if projects is None else projects.items,
        more_projects=projects is not None and projects.next_cursor is not None,
        entries=None if entries is None else entries.items,
        next_cursor=None if entries is None else entries.next_cursor,
    )
