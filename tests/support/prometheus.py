"""The programs of Prometheus, which Debian's package prometheus has."""

import shutil
import subprocess
from pathlib import Path

PROMTOOL = shutil.which("promtool")
PROMETHEUS = shutil.which("prometheus")
NO_PROMETHEUS = "there is no Prometheus: install Debian's package prometheus"
MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"


def promtool(*arguments: str, text: str = "") -> "subprocess.CompletedProcess[str]":
    """Run promtool in deploy/monitoring, with ``text`` as its input."""
    command = [str(PROMTOOL), *arguments]
    return subprocess.run(command, cwd=MONITORING, input=text, capture_output=True, text=True, check=False)
