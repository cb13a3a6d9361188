"""Schemathesis tests the running API against its own OpenAPI document, with valid and invalid requests.

``CISTERN_TEST_LONG=1`` (`make test-long`) also runs the phase `coverage`, which tries all limits of all values, and
follows ten times as many chains of requests, from a random seed; ``CISTERN_TEST_SEED`` sets the seed.
"""

import json
import os
import secrets
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.acceptance.cluster import ROOT, Cluster
from tests.acceptance.scale import LONG
from tests.support.keys import SECRET

SEED = int(os.environ.get("CISTERN_TEST_SEED") or (secrets.randbelow(2**32) if LONG else 1))

#: A request that is valid by the document can be refused: the name is taken, the size would shrink the volume, the
#: id does not exist. OpenAPI cannot express that, so this check would report correct responses.
NOT_CHECKED = "positive_data_acceptance"

PHASES = "examples,coverage,fuzzing,stateful" if LONG else "examples,fuzzing,stateful"

#: Few random values, because the phase `coverage` tries all limits of all values; more chains of requests.
CONFIGURATION = f"""
generation.max-examples = 2
generation.database = "none"
[auth.openapi.key]
bearer = "${{CISTERN_TEST_KEY}}"
[phases.stateful]
generation.max-examples = {80 if LONG else 8}
"""

#: The same order in each run; and Hypothesis computes its Unicode tables once, not in each run.
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "PYTHONHASHSEED": "0",
    "HYPOTHESIS_STORAGE_DIRECTORY": str(ROOT / ".hypothesis"),
    "SCHEMATHESIS_HOOKS": "tests.acceptance.fuzz_hooks",
}


def fuzz(address: str, folder: Path, phases: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "schemathesis.toml").write_text(CONFIGURATION)
    return subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli"),
            *("--config-file", "schemathesis.toml", "run", f"{address}/openapi.json"),
            *("--seed", str(SEED), "--phases", phases),
            *("--checks", "all", "--exclude-checks", NOT_CHECKED, "--continue-on-failure"),
            *("--exclude-operation-id", "revoke_key", "--exclude-operation-id", "rotate_key"),  # it would end its own
            # As slow as the timeout allows: the default of 10 s is exceeded on a crowded machine.
            *("--request-timeout", "60", "--max-response-time", "60"),
            *("--report", "har", "--report-har-path", "seen.har", *options),
        ],
        cwd=folder,  # it writes its files to the working directory
        env=os.environ | ENVIRONMENT | {"CISTERN_TEST_KEY": SECRET.text},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def responses(folder: Path) -> Counter[int]:
    entries = json.loads((folder / "seen.har").read_text())["log"]["entries"]
    return Counter(entry["response"]["status"] for entry in entries)


@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    ["--exclude-path-regex=^/api/v0", "--include-path-regex=^/api/v0"],
    ids=["version 1", "version 0"],
)
def test_the_running_api_conforms_to_its_document(cluster: Cluster, tmp_path: Path, part: str) -> None:
    sys.stdout.write(f"CISTERN_TEST_SEED={SEED} repeats this run.\n")
    cluster.start_worker(CISTERN_BUSY_SECONDS="1", CISTERN_LOG_LEVEL="error")
    run = fuzz(cluster.start_api(), tmp_path, PHASES, part)

    assert run.returncode == 0, run.stdout + run.stderr
    statuses = responses(tmp_path)
    assert not [status for status in statuses if status >= 500]
    assert statuses[202 if "exclude" in part else 201] > 10, "enough requests were accepted"
