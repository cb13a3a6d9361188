"""The roles of PostgreSQL that the processes of the tests have, with the least privileges of each part."""

import re
from typing import Final

from domain.db.migrations.grants import Part, grant_to

ROLES: Final = {part: f"cistern_{part}" for part in Part}


def grant(url: str) -> None:
    """Create the roles, unless they exist, and let them use the migrated database."""
    for part, role in ROLES.items():
        grant_to(url, role, [part], password="not asked for")


def as_role(url: str, role: str) -> str:
    """Return the URL for another role than the superuser."""
    return re.sub(r"//postgres(:\w+)?@", f"//{role}@", url)
