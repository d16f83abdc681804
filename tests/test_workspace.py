"""The tree is what the README says: members, files, commands, texts."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MEMBERS = sorted(path.parent for path in (ROOT / "packages").glob("*/pyproject.toml"))


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


@pytest.mark.parametrize("member", MEMBERS, ids=lambda path: path.name)
def test_every_member_has_what_a_package_needs(member):
    project = tomllib.loads((member / "pyproject.toml").read_text())["project"]
    module = project["name"].replace("-", "_")
    for needed in ("README.md", "CHANGELOG.md", "LICENSE", "tests", f"src/{module}/__init__.py", f"src/{module}/py.typed"):
        assert (member / needed).exists(), f"{member.name} lacks {needed}"
    assert f"## {project['version']}" in (member / "CHANGELOG.md").read_text(), "the changelog does not know this version"
    assert member.name in (ROOT / "packages/README.md").read_text()


@pytest.mark.parametrize("member", MEMBERS, ids=lambda path: path.name)
def test_no_member_depends_on_another_but_for_the_one_edge(member):
    project = tomllib.loads((member / "pyproject.toml").read_text())["project"]
    edges = {re.split(r"[^a-z0-9-]", requirement)[0] for requirement in project["dependencies"] if requirement.startswith("physio-")}
    assert edges <= ({"physio-train"} if project["name"] == "physio-sae" else set())


def test_no_app_shadows_the_standard_library():
    assert not {path.stem for path in (ROOT / "apps").glob("*.py")} & sys.stdlib_module_names


def test_the_readme_names_the_commands_that_ci_runs():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci/run").read_text()
    for command in ("uv run apps/pretrain.py", "uv run pytest -q", "uv sync --locked", "uv run ruff check .", "uv run lint-imports"):
        assert command in readme, f"the README does not name {command!r}"
        assert command.split(" --")[0] in ci, f".ci/run does not run {command!r}"


def test_every_path_in_the_readmes_tree_exists():
    tree = re.search(r"^```tree\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    assert tree, "the README has no ```tree block"
    folders: list[str] = []
    for line in tree.group(1).splitlines():
        if not line.strip():
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        path = ROOT.joinpath(*folders[:depth], name)
        assert path.exists(), f"the README's tree names {path.relative_to(ROOT)}"
        if name.endswith("/"):
            folders = [*folders[:depth], name]


def test_tracked_text_holds_no_machine_path_and_no_unsafe_loading():
    forbidden = {
        "an absolute path of a machine": re.compile(r"(?<![\w.~>})])/(?:work|home|root|Users)/\w"),
        "a pickle": re.compile(r"allow_pickle\s*=\s*True|weights_only\s*=\s*False|pickle\.loads?\("),
        "a swallowed error": re.compile(r"except\s*:|except (?:Base)?Exception:\s*\n\s*pass"),
    }
    for path in tracked_files():
        if path.suffix not in {".py", ".md", ".toml", ".ipynb", ""} or path == Path(__file__).resolve():
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        for what, pattern in forbidden.items():
            if what == "a pickle" and "tests" in path.parts:
                continue  # a test may check that a reader survives the way to a worker process
            assert not pattern.search(text), f"{path.relative_to(ROOT)} holds {what}: {pattern.search(text).group()!r}"
