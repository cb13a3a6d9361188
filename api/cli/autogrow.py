"""Autogrow policies in one text, as the plugins of container engines and of orchestrators take them."""

from typing import Any, Final

from api.cli.sizes import size_of

_FORM: Final = "it must be USAGE_ABOVE:AMOUNT:UP_TO, such as 80:20%:1TiB or 80:10GiB:1TiB"


def parse_autogrow(text: str) -> dict[str, Any]:
    """Return the policy in USAGE_ABOVE:AMOUNT:UP_TO as the API is sent it, which checks the sizes.

    Raises:
        ValueError: the text has another form; the message says which is expected.
    """
    parts = [part.strip() for part in text.split(":")]
    if len(parts) != 3:  # noqa: PLR2004 (as the message says)
        raise ValueError(f"{text!r}: {_FORM}")
    usage_above, amount, up_to = parts
    step = {"percent": _percent(amount)} if amount.endswith("%") else {"by": size_of(amount)}
    return {"usage_above": _percent(usage_above), **step, "up_to": size_of(up_to)}


def _percent(text: str) -> float:
    try:
        return float(text.removesuffix("%"))
    except ValueError:
        raise ValueError(f"{text!r} is no percentage: {_FORM}") from None
