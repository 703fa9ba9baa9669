"""What stands beside the code: workflows, pages for contributors, and what no file may hold."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from pages import PROJECT, ROOT

pytestmark = pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="a source distribution has no workflows and no history"
)

WORKFLOWS: Final = sorted(ROOT.glob(".github/workflows/*.yml"))
CONFIGURATIONS: Final = [
    *WORKFLOWS,
    *sorted(ROOT.glob(".github/ISSUE_TEMPLATE/*.yml")),
    ROOT / ".github" / "dependabot.yml",
    ROOT / ".github" / "zizmor.yml",
    ROOT / ".pre-commit-config.yaml",
]
FOR_CONTRIBUTORS: Final = ["CONTRIBUTING.md", "SECURITY.md"]

RULES: Final = re.compile(r"^([a-z][a-z0-9 -]*):(?!=)", re.MULTILINE)
TARGETS: Final = set(" ".join(RULES.findall((ROOT / "Makefile").read_text())).split())

ELSEWHERE: Final = re.compile(
    rb"pypi[.]org/simple|files[.]python[h]osted"
    rb"|/root[/]|/home[/](?!runner/)\w+/|/Users[/]\w+/"
)
"""Addresses of package indexes, and paths of one machine. The pattern does not match itself."""


def workflow(name: str) -> Any:
    return yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())


def commands(parsed: Any) -> Iterator[str]:
    """The lines that a workflow's steps run."""
    for job in parsed["jobs"].values():
        for step in job["steps"]:
            yield from step.get("run", "").splitlines()


def targets(command: str) -> list[str]:
    """The targets that a command makes, if it is one of make's."""
    words = shlex.split(command, comments=True)
    if words[:1] != ["make"]:
        return []
    return [word for word in words[1:] if "=" not in word]


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.name)
def test_configurations_are_yaml(path: Path) -> None:
    assert yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_make_targets_that_are_there(path: Path) -> None:
    made = [one for line in commands(workflow(path.name)) for one in targets(line)]
    assert made
    assert set(made) <= TARGETS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_have_no_right_that_a_job_does_not_ask_for(path: Path) -> None:
    parsed = workflow(path.name)
    assert parsed["permissions"] == {}
    for job in parsed["jobs"].values():
        assert "permissions" in job
        assert "timeout-minutes" in job


def test_no_workflow_uses_a_secret() -> None:
    assert not [path.name for path in WORKFLOWS if "secrets" in path.read_text()]


def test_all_jobs_are_waited_for() -> None:
    jobs = workflow("test.yml")["jobs"]
    assert {*jobs["passed"]["needs"], "passed"} == set(jobs)


def test_each_supported_python_is_tested() -> None:
    classifiers = PROJECT["project"]["classifiers"]
    pythons = [one.rpartition(" ")[2] for one in classifiers if re.search(r":: 3\.\d+$", one)]
    assert workflow("test.yml")["jobs"]["test"]["strategy"]["matrix"]["python"] == pythons
    support = (ROOT / "docs" / "support.md").read_text()
    (run,) = re.findall(r"^\| Python \|.*\|(.*)\|$", support, re.MULTILINE)
    assert re.findall(r"3\.\d+", run) == pythons


@pytest.mark.parametrize("page", [*FOR_CONTRIBUTORS, ".github/PULL_REQUEST_TEMPLATE.md"])
def test_pages_for_contributors_name_targets_that_are_there(page: str) -> None:
    text = (ROOT / page).read_text()
    named = re.findall(r"^make .+|(?<=`)make [^`]+", text, re.MULTILINE)
    assert {one for command in named for one in targets(command)} <= TARGETS


@pytest.mark.parametrize("page", FOR_CONTRIBUTORS)
def test_their_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#([^)]+))?\)", (ROOT / page).read_text())
    assert links
    for path, anchor in links:
        headings = re.findall(r"^#+ (.+)", (ROOT / path).read_text(), re.MULTILINE)
        assert not anchor or anchor in {one.lower().replace(" ", "-") for one in headings}, path


def test_no_committed_file_names_a_machine_or_a_package_index() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"],  # noqa: S607 - wherever git is
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert ROOT / "pyproject.toml" in paths
    found = [
        f"{path.relative_to(ROOT)}: {match[0].decode()}"
        for path in paths
        if path.is_file()
        for match in ELSEWHERE.finditer(path.read_bytes())
    ]
    assert not found


@pytest.mark.parametrize(
    "parts",
    [("https://pypi.", "org/simple"), ("/ro", "ot/x"), ("/ho", "me/me/x")],
)
def test_such_a_name_is_found(parts: tuple[str, str]) -> None:
    assert ELSEWHERE.search("".join(parts).encode())
