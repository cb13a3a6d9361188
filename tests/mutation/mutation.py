"""One mutation: a guard that is removed, and the tests that must fail then."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutation:
    """A change that the tests must notice: in ``file``, replace the single occurrence of ``text`` by ``instead``."""

    name: str
    why: str
    file: str
    text: str
    instead: str
    tests: tuple[str, ...]

    def applies_to(self, root: Path) -> bool:
        """Return whether the text occurs exactly once."""
        return (root / self.file).read_text().count(self.text) == 1

    def apply(self, root: Path) -> None:
        path = root / self.file
        path.write_text(path.read_text().replace(self.text, self.instead))
