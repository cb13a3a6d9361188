"""Every mutation applies to the code and names existing tests; and which mutations the command line chooses."""

import ast
import subprocess
from pathlib import Path

import pytest

from tests.mutation.__main__ import changed_files, choose, default_base
from tests.mutation.mutation import Mutation
from tests.mutation.mutations import MUTATIONS

ROOT = Path(__file__).parents[2]

every_mutation = pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=lambda mutation: mutation.name)


@every_mutation
def test_text_to_replace_occurs_exactly_once(mutation: Mutation) -> None:
    assert mutation.applies_to(ROOT)


@every_mutation
def test_mutated_file_is_valid_python_and_differs(mutation: Mutation) -> None:
    source = (ROOT / mutation.file).read_text().replace(mutation.text, mutation.instead)

    assert ast.dump(ast.parse(source)) != ast.dump(ast.parse((ROOT / mutation.file).read_text()))


@every_mutation
def test_tests_that_must_fail_exist(mutation: Mutation) -> None:
    for test in mutation.tests:
        path, _, name = test.partition("::")
        name = name.rpartition("::")[2]
        assert f"def {name}(" in (ROOT / path).read_text() if name else (ROOT / path).is_file()


class Repository:
    """A Git repository with one committed file, ``a``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.git("init", "--quiet", "--initial-branch=main")
        self.commit("a")

    def git(self, *arguments: str) -> None:
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=self.root, check=True)

    def commit(self, name: str) -> None:
        (self.root / name).write_text("committed")
        self.git("add", name)
        self.git("commit", "--quiet", "-m", name)

    def changed_files(self) -> set[str] | None:
        return changed_files(self.root, default_base(self.root))


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def test_all_files_count_as_changed_in_a_repository_with_one_commit(repository: Repository) -> None:
    assert repository.changed_files() is None


def test_files_of_the_last_commit_and_the_working_tree_are_changed(repository: Repository) -> None:
    repository.commit("b")
    (repository.root / "a").write_text("edited")

    assert repository.changed_files() == {"a", "b"}


def test_files_of_all_commits_since_origin_main_are_changed(repository: Repository) -> None:
    repository.git("update-ref", "refs/remotes/origin/main", "HEAD")
    for name in "bc":
        repository.commit(name)

    assert repository.changed_files() == {"b", "c"}


def test_last_commit_is_compared_with_its_parent_if_it_is_origin_main(repository: Repository) -> None:
    for name in "bc":
        repository.commit(name)
    repository.git("update-ref", "refs/remotes/origin/main", "HEAD")

    assert repository.changed_files() == {"c"}


def test_mutations_are_chosen_by_name() -> None:
    assert choose(["seal-keeps-fence"]) == [MUTATIONS["seal-keeps-fence"]]
    assert choose([]) == list(MUTATIONS.values())


@pytest.mark.parametrize("arguments", [["no-such-mutation"], ["--changed", "HEAD", "seal-keeps-fence"]])
def test_invalid_choice_of_mutations_is_a_usage_error(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        choose(arguments)
