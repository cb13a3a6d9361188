"""The options of volumes that an engine creates."""

import pytest

from api.docker_plugin.errors import PluginError
from api.docker_plugin.options import Options, differences, parse_options

GIB, TIB = 1 << 30, 1 << 40
VOLUME = {
    "size": 10 * GIB,
    "filesystem": "ext4",
    "backend": "local",
    "labels": {"team": "search"},
    "autogrow": {"usage_above": 80, "percent": 20.0, "up_to": TIB},
    "source": None,
}


def test_all_options_are_read() -> None:
    options = {"size": "10GiB", "filesystem": "xfs", "backend": "ssd", "label.team": "search", "label.a.b": "c=d"}

    assert parse_options({**options, "autogrow": "80:20%:1TiB"}) == Options(
        size=10 * GIB,
        filesystem="xfs",
        backend="ssd",
        labels={"team": "search", "a.b": "c=d"},
        autogrow={"usage_above": 80, "percent": 20, "up_to": TIB},
    )


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("80:20%:1TiB", {"usage_above": 80, "percent": 20, "up_to": TIB}),
        ("92.5%:5G:100G", {"usage_above": 92.5, "by": 5 * GIB, "up_to": 100 * GIB}),
        ("80:5000:10000", {"usage_above": 80, "by": 8192, "up_to": 8192}),
    ],
)
def test_autogrow_is_a_threshold_an_amount_and_a_limit(text: str, policy: dict[str, float]) -> None:
    assert parse_options({"autogrow": text}).autogrow == policy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sise": "1GiB"}, "unknown option 'sise': the options are size, "),
        ({"SIZE": "1GiB"}, "unknown option 'SIZE'"),
        ({"label.": "x"}, "unknown option 'label.'"),
        ({"size": "much"}, "option size: 'much' is no size such as 10GiB"),
        ({"filesystem": "zfs"}, "option filesystem: 'zfs' is none of ext4, xfs, btrfs"),
        ({"autogrow": "80:20%"}, "option autogrow: '80:20%': it must be USAGE_ABOVE:AMOUNT:UP_TO"),
        ({"autogrow": "high:20%:1TiB"}, "option autogrow: 'high' is no percentage"),
        ({"autogrow": "80:20%:far"}, "option autogrow: 'far' is no size"),
        ({"from_snapshot": "a/b", "from_volume": "c"}, "options from_snapshot and from_volume"),
    ],
)
def test_an_invalid_option_is_named(options: dict[str, str], message: str) -> None:
    with pytest.raises(PluginError) as caught:
        parse_options(options)

    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({}, []),
        ({"size": "10GiB", "filesystem": "ext4", "backend": "local", "label.team": "search"}, []),
        ({"size": "5GiB", "autogrow": "80:20%:1TiB"}, []),
        ({"size": "11GiB"}, ["its size is 10 GiB, less than 11 GiB"]),
        ({"filesystem": "xfs"}, ["its file system is ext4, not xfs"]),
        ({"backend": "ssd"}, ["its backend is local, not ssd"]),
        ({"label.team": "mail"}, ["its label team is search, not mail"]),
        ({"label.tier": "gold"}, ["its label tier is missing, not gold"]),
        ({"autogrow": "80:30%:1TiB"}, ["its autogrow policy is another one"]),
    ],
)
def test_an_existing_volume_is_compared_with_the_options_that_are_given(
    options: dict[str, str], difference: list[str]
) -> None:
    assert [*differences(VOLUME, parse_options(options), None)] == difference


def test_an_existing_volume_of_another_source_differs() -> None:
    assert [*differences(VOLUME, Options(), {"volume_id": "1"})] == ["it was not made from this source"]
