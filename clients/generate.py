"""Generate the Python client: ``python clients/generate.py [FOLDER]`` writes the package, to ``clients/python``.

The package is made from the OpenAPI document of this checkout, without a server. Its code is not committed: it would
have to be generated again with every change of a route.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from api.main import create_app

#: The folder with what is written by hand, and by default also with what is generated.
HERE: Final = Path(__file__).resolve().parent / "python"
PACKAGE: Final = "cistern_client"
#: What is written by hand.
FILES: Final = ("README.md", "pyproject.toml")


def generate(folder: Path) -> None:
    """Write the package to a folder; one that is there already is replaced.

    Raises:
        SystemExit: the document has something that the generator cannot express.
    """
    beside = Path(sys.executable).parent  # the generator formats its output with the ruff beside it
    environment = os.environ | {"PATH": f"{beside}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    with TemporaryDirectory() as name:
        document = Path(name) / "openapi.json"
        document.write_text(json.dumps(create_app().openapi()))
        generator = [str(beside / "openapi-python-client"), "generate", "--meta", "none", "--overwrite"]
        options = ["--path", str(document), "--output-path", PACKAGE, "--fail-on-warning"]
        command = [*generator, *options]
        ran = subprocess.run(command, cwd=name, env=environment, check=False, capture_output=True, text=True)
        if ran.returncode != 0:
            raise SystemExit(ran.stdout + ran.stderr)
        shutil.rmtree(folder / PACKAGE, ignore_errors=True)
        shutil.copytree(Path(name) / PACKAGE, folder / PACKAGE)


def main() -> int:
    """Generate the package, with its README."""
    folder = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else HERE
    folder.mkdir(parents=True, exist_ok=True)
    if folder != HERE:
        for name in FILES:
            shutil.copy(HERE / name, folder / name)
    generate(folder)
    print(f"The client is in {folder}: pip install {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
