"""The running API under schemathesis: what its document allows, and much that it does not, is answered as it says."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.acceptance.cluster import ROOT, Cluster

#: Values that the document allows are refused for what they mean: a name that is taken, a size that would shrink a
#: volume, a thing that is not there. A document cannot say that, so this check would be wrong about many an answer.
NOT_CHECKED = "positive_data_acceptance"

#: Few made-up values, because the phase `coverage` tries all limits of all values anyway; more chains of requests.
CONFIGURATION = """
generation.max-examples = 2
[phases.stateful]
generation.max-examples = 8
"""


def fuzz(address: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "schemathesis.toml").write_text(CONFIGURATION)
    return subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli"),
            *("--config-file", "schemathesis.toml", "run", f"{address}/openapi.json"),
            *("--seed", "1", "--phases", "examples,coverage,fuzzing,stateful"),
            *("--checks", "all", "--exclude-checks", NOT_CHECKED, "--continue-on-failure"),
            *("--request-timeout", "60", "--report", "har", "--report-har-path", "seen.har", *options),
        ],
        cwd=folder,  # it leaves its notes where it is
        env=os.environ | {"PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.acceptance.fuzz_hooks"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def answers(folder: Path) -> Counter[int]:
    entries = json.loads((folder / "seen.har").read_text())["log"]["entries"]
    return Counter(entry["response"]["status"] for entry in entries)


@pytest.mark.parametrize(
    "part", ["--exclude-path-regex=^/api/v0", "--include-path-regex=^/api/v0"], ids=["version 1", "version 0"]
)
def test_the_running_api_keeps_its_word(cluster: Cluster, tmp_path: Path, part: str) -> None:
    cluster.start_worker(CISTERN_BUSY_SECONDS="1", CISTERN_LOG_LEVEL="error")
    told = fuzz(cluster.start_api(), tmp_path, part)

    assert told.returncode == 0, told.stdout + told.stderr
    seen = answers(tmp_path)
    assert not [status for status in seen if status >= 500]
    assert seen[202 if "exclude" in part else 201] > 10, "it came past what is refused"
