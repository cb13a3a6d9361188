"""Generates the messages and stubs of ``csi.proto`` whenever the package is built, also for an editable installation.

It runs before anything is installed, and imports nothing of Cistern.
"""

from pathlib import Path
from typing import Final

from setuptools.command.build_py import build_py  # type: ignore[import-untyped]

ROOT: Final = Path(__file__).parents[2]
#: Relative to the root, so that the generated modules import each other by their full names.
PROTO: Final = "api/csi/csi.proto"


class GenerateStubs(build_py):  # type: ignore[misc]
    """Writes the generated modules beside ``csi.proto``, then collects the modules of all packages."""

    def run(self) -> None:
        """Generate, then build."""
        generate()
        super().run()


def generate(target: Path = ROOT) -> None:
    """Write ``api/csi/csi_pb2.py``, its types and ``csi_pb2_grpc.py`` below a directory.

    Raises:
        RuntimeError: the interface file is malformed; standard error says where.
    """
    from grpc_tools import protoc  # noqa: PLC0415 (only a build has it)

    includes = Path(protoc.__file__).with_name("_proto")
    outputs = (f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python"))
    if protoc.main(["protoc", f"-I{ROOT}", f"-I{includes}", *outputs, PROTO]):
        raise RuntimeError(f"{PROTO} could not be compiled")


if __name__ == "__main__":
    generate()
