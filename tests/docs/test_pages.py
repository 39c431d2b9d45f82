"""Pages name only what exists: links, tests, folders, commands; the README says what continuous integration runs."""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
from pathlib import Path

import pytest

from sealgate.cli import build_parser
from tests.docs.conftest import PAGES

TEST_COMMAND = (
    "python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e '.[all,dev]' && .venv/bin/pytest"
)
DEMO_COMMAND = (
    "python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e '.[all]' && .venv/bin/sealgate demo"
)
ALLOWED_ROOTS = ("etc", "opt", "var", "usr", "proc", "dev", "sys", "bin", "nonexistent", "lib", "run")
ABSOLUTE = re.compile(r"(?<![\w.:/})>`*-])/([a-z]+)/[\w.-]")


def anchor(heading: str) -> str:
    """As Markdown renderers make them."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_readmes_commands_are_those_that_continuous_integration_runs(root: Path) -> None:
    readme = (root / "README.md").read_text()
    script = next(line for line in (root / ".ci" / "run").read_text().splitlines() if line.startswith("command="))
    extract = re.search(r"\$\((.*)\)$", script)
    assert extract is not None
    done = subprocess.run(["bash", "-c", extract[1]], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == TEST_COMMAND
    assert "<!-- test command -->\n```sh\n" in readme
    assert f"```sh\n{DEMO_COMMAND}\n```" in readme


def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"(?s)```.*?```", "", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        path, _, fragment = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name} links to {target}"
        if fragment:
            headings = re.findall(r"(?m)^#+ (.*)$", found.read_text())
            assert fragment in {anchor(heading) for heading in headings}, f"{page.name} links to {target}"


def test_every_test_that_is_named_exists(root: Path, page: Path) -> None:
    for path, name in re.findall(r"`(tests/[\w/]*(?:\.py)?)(?:::(\w+))?`", page.read_text()):
        assert (root / path).exists(), f"{page.name} names {path}"
        if name:
            tree = ast.parse((root / path).read_text())
            names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
            assert name in names, f"{page.name} names {path}::{name}"


def test_every_source_that_is_named_exists(root: Path, page: Path) -> None:
    packages = "sealgate|gateway|secure_runtime|training|policy|audit|deploy|examples|benchmarks"
    for path in re.findall(rf"`((?:{packages})/[\w/.-]*)`", page.read_text()):
        in_state = re.match(r"policy/(tenants|budgets|manifest|scenarios/NAME)\.toml$", path)
        assert in_state or (root / path).exists(), f"{page.name} names {path}"


def test_the_claims_table_names_a_test_in_every_row(root: Path) -> None:
    readme = (root / "README.md").read_text()
    table = readme.split("## Claims", 1)[1].split("\n## ", 1)[0]
    claims = [line for line in table.splitlines() if line.startswith("| ") and not line.startswith("| claim")]
    assert len(claims) >= 15
    assert [claim for claim in claims if "`tests/" not in claim] == []


def test_the_failure_table_names_a_test_or_says_that_there_is_none(operations: str) -> None:
    table = operations.split("\n## Failures\n", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and not line.startswith("| what fails")]
    assert len(rows) >= 25
    assert [row for row in rows if "`tests/" not in row and "no test yet" not in row] == []
    assert all(row.count("|") == 6 for row in rows)


def test_every_folder_has_its_line_in_the_readme(root: Path) -> None:
    readme = (root / "README.md").read_text()
    tracked = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=False).stdout
    folders = {line.split("/")[0] for line in tracked.splitlines() if "/" in line and not line.startswith(".")}
    assert [name for name in sorted(folders) if f"| `{name}/` |" not in readme] == []


def test_every_command_is_named_in_the_documentation() -> None:
    text = "".join(page.read_text() for page in PAGES)
    actions = [item for item in build_parser()._actions if isinstance(item, argparse._SubParsersAction)]
    missing = [name for name in actions[0].choices if f"sealgate {name}" not in text]
    assert missing == []


def _parser(words: list[str]) -> tuple[argparse.ArgumentParser, list[str]]:
    parser = build_parser()
    while words:
        inner = [item for item in parser._actions if isinstance(item, argparse._SubParsersAction)]
        if not inner or words[0] not in inner[0].choices:
            break
        parser, words = inner[0].choices[words[0]], words[1:]
    return parser, words


def test_every_option_in_a_command_line_exists(page: Path) -> None:
    blocks = re.findall(r"(?s)```sh\n(.*?)```", page.read_text())
    lines = [line.split("#")[0] for block in blocks for line in block.splitlines()]
    inline = re.findall(r"`(sealgate [a-z]+ [^`]*)`", page.read_text())
    for line in [*lines, *inline]:
        for command in re.findall(r"(?:^|&& |/)sealgate ([^&|]*)", line):
            parser, words = _parser(command.split())
            known = {option for action in parser._actions for option in action.option_strings}
            wrong = [word for word in words if word.startswith("--") and word not in known]
            assert not wrong, f"{page.name}: sealgate {command.strip()} has no {wrong}"


def test_no_page_names_a_path_of_somebodys_machine(page: Path) -> None:
    text = re.sub(r"https?://\S+", "", page.read_text())
    roots = {found for found in ABSOLUTE.findall(text) if found not in ALLOWED_ROOTS}
    assert roots <= {"sealed", "health", "audit", "v2", "v1", "schema"}, "an absolute path that is no resource of ours"


def test_decisions_are_numbered_without_gaps_and_fit_on_a_page(root: Path) -> None:
    decisions = sorted((root / "docs" / "adr").glob("*.md"))
    assert [path.name[:4] for path in decisions] == [f"{number:04d}" for number in range(1, len(decisions) + 1)]
    for path in decisions:
        text = path.read_text()
        assert text.startswith(f"# {int(path.name[:4])}. ")
        assert len(text.splitlines()) <= 45, f"{path.name} is longer than a page"
        assert "**Decision.**" in text
        assert "**Price.**" in text


@pytest.mark.parametrize("name", ["sealgate-runtime.service", "sealgate-gateway.service"])
def test_the_units_run_commands_that_exist_as_users_of_their_own(root: Path, name: str) -> None:
    unit = (root / "deploy" / name).read_text()
    command = re.search(r"(?m)^ExecStart=\S*/sealgate (\w+) ", unit)
    assert command is not None
    assert f"User=sealgate-{command[1]}" in unit
    assert _parser([command[1]])[1] == []
