"""Types of single values in requests and responses. A value that is rejected here reaches no service.

Patterns are written so that Rust (Pydantic), ECMAScript (OpenAPI) and Python interpret them alike.
"""

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, StringConstraints, WithJsonSchema

from api.schemas.base import refuse_more
from domain.bulk.expand import MAX_COOLDOWN_SECONDS
from domain.volumes.model import BLOCK_BYTES, MAX_NAME, MAX_SIZE, rounded_down, rounded_up

NAME_PATTERN: Final = rf"^[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME - 1}}}$"
LABEL_KEY: Final = r"[A-Za-z0-9._/-]{1,63}"
LABEL_VALUE: Final = r"[^\x00-\x1f\x7f-\x9f]{0,256}"
#: A whole number of bytes, or a number with a unit and up to three decimals.
SIZE_PATTERN: Final = r"^([0-9]{1,15} ?[Bb]?|[0-9]{1,9}([.][0-9]{1,3})? ?[KMGTkmgt][Ii]?[Bb])$"
#: Ten thousand times the present size: more than anyone needs, and far below the limits of a float.
MAX_PERCENT: Final = 1_000_000
#: Lower for bulk expansions, where a typing error would hit every selected volume.
MAX_BULK_PERCENT: Final = 10_000
MAX_IDS: Final = 10_000
#: Of a list's filter: they are in the URL.
MAX_QUERY_IDS: Final = 100
MAX_CONCURRENT: Final = 10_000
MAX_LABELS: Final = 64
#: The maximum of PostgreSQL's bigint.
MAX_BYTES: Final = 2**63 - 1


def parse_size(text: str) -> int:
    """Convert a size that matches SIZE_PATTERN to bytes, by decimal arithmetic; a fraction counts as a whole byte."""
    number, unit = re.fullmatch(r"([0-9.]+) ?([A-Za-z]*)", text).groups()  # type: ignore[union-attr]
    base = 1024 if "i" in unit.lower() else 1000
    power = "bkmgt".index(unit[:1].lower() or "b")
    return math.ceil(Decimal(number) * Decimal(base) ** power)


def _require_exact_size(value: Any) -> Any:
    """Convert text, and reject what an int would be made of all the same: true, 0.5."""
    if isinstance(value, str) and re.fullmatch(SIZE_PATTERN, value):
        return parse_size(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)  # in JSON Schema, 1.0 is an integer
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError("must be a whole number of bytes, or text such as 10GiB")


def _size_schema(minimum: int, rounding: str, maximum: int = MAX_SIZE) -> WithJsonSchema:
    return WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": minimum, "maximum": maximum},
                {"type": "string", "pattern": SIZE_PATTERN},
            ],
            "description": f"Bytes, or text such as `10GiB` (2^30) or `10GB` (10^9); {rounding}.",
            "examples": [10737418240, "10GiB"],
        }
    )


Size = Annotated[
    int,
    Field(gt=0, le=MAX_SIZE),
    BeforeValidator(_require_exact_size),
    AfterValidator(rounded_up),
    _size_schema(1, f"rounded up to a multiple of {BLOCK_BYTES} bytes"),
]

#: What a size must not exceed, and therefore rounded down.
SizeLimit = Annotated[
    int,
    Field(ge=BLOCK_BYTES, le=MAX_SIZE),
    BeforeValidator(_require_exact_size),
    AfterValidator(rounded_down),
    _size_schema(BLOCK_BYTES, f"rounded down to a multiple of {BLOCK_BYTES} bytes"),
]

#: Of many sizes together.
ByteLimit = Annotated[
    int, Field(ge=0, le=MAX_BYTES), BeforeValidator(_require_exact_size), _size_schema(0, "not rounded", MAX_BYTES)
]

Percent = Annotated[float, Field(gt=0, le=MAX_PERCENT, strict=True, allow_inf_nan=False)]

BulkPercent = Annotated[Percent, Field(le=MAX_BULK_PERCENT)]

UsageAbove = Annotated[float, Field(ge=0, le=100, strict=True, allow_inf_nan=False)]

Filesystem = Literal["ext4", "xfs", "btrfs"]

CooldownSeconds = Annotated[
    int,
    Field(ge=1, le=MAX_COOLDOWN_SECONDS, strict=True, description="Do not grow again for so long after a growth."),
]


def _require_distinct(ids: list[UUID]) -> list[UUID]:
    if len(set(ids)) < len(ids):
        raise ValueError("contains an id more than once")
    return ids


VolumeIds = Annotated[
    list[UUID],
    Field(max_length=MAX_IDS, fail_fast=True, json_schema_extra={"uniqueItems": True}),
    BeforeValidator(partial(refuse_more, limit=MAX_IDS)),
    AfterValidator(_require_distinct),
]

Name = Annotated[
    str,
    StringConstraints(pattern=NAME_PATTERN, max_length=MAX_NAME),
    Field(
        description="Unique. Letters, digits, `.`, `_` and `-`, beginning with a letter or a digit.",
        examples=["postgres-1"],
    ),
]

#: Ids begin with their time: those of the same minute share the first eight digits.
IdPrefix = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9A-Fa-f][0-9A-Fa-f-]{0,35}$"),
    Field(description="Only ids that begin with these digits; hyphens do not count.", examples=["01a0b1c2"]),
]

BackendName = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,128}$")]

Labels = Annotated[
    dict[
        Annotated[str, StringConstraints(pattern=f"^{LABEL_KEY}$")],
        Annotated[str, StringConstraints(pattern=f"^{LABEL_VALUE}$")],
    ],
    Field(
        max_length=MAX_LABELS,
        examples=[{"team": "search", "tier": "gold"}],
        json_schema_extra={"additionalProperties": False},
    ),
    BeforeValidator(partial(refuse_more, limit=MAX_LABELS)),
]

LabelTerm = Annotated[str, StringConstraints(pattern=f"^{LABEL_KEY}:{LABEL_VALUE}$")]

JobKind = Annotated[str, StringConstraints(pattern=r"^[a-z]{1,32}[.][a-z]{1,32}$"), Field(examples=["volume.expand"])]

UtcDatetime = Annotated[datetime, AfterValidator(lambda moment: moment.astimezone(UTC))]
#: A name in a filter; those of keys and schedules have only such characters.
NameFilter = Annotated[str, Field(max_length=MAX_NAME, pattern=r"^[\x20-\x7e]+$")]


def _refuse_number(value: Any) -> Any:
    if not isinstance(value, str) or "-" not in value[1:]:  # Pydantic would read a number as seconds since 1970
        raise ValueError("must be a time with its zone, such as 2026-01-31T23:59:59Z")
    return value


def _refuse_before_1970(moment: datetime) -> datetime:
    if moment < datetime.fromtimestamp(0, UTC):
        raise ValueError("must not be before 1970")
    return moment


#: A time in a request, with its zone: without one its meaning would be a guess.
Moment = Annotated[
    AwareDatetime,
    BeforeValidator(_refuse_number),
    AfterValidator(_refuse_before_1970),
    Field(examples=["2026-01-31T23:59:59Z"]),
]


def parse_label_terms(terms: Sequence[str]) -> dict[str, str]:
    """Parse ``key:value`` terms; the key ends at the first colon.

    Raises:
        ValueError: a key occurs twice. No volume has two values for one key, so nothing could match.
    """
    labels = dict(term.split(":", 1) for term in terms)
    if len(labels) < len(terms):
        raise ValueError("contains a label more than once")
    return labels
