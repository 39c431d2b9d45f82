"""The command line: every command explains itself, a missing extra is named, mistakes are one line."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from sealgate import cli
from sealgate.command import Command
from sealgate.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    "demo",
    "init",
    "serve",
    "train",
    "models",
    "infer",
    "audit",
    "token",
    "policy",
    "gateway",
    "runtime",
    "doctor",
)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0
    assert len(capsys.readouterr().out) > 150


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from sealgate.cli import build_parser; build_parser().format_help(); "
        "print(sorted({'torch', 'litestar', 'sqlalchemy', 'opacus', 'httpx', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_itself_loads_next_to_nothing() -> None:
    """What is loaded before `main` is entered could be interrupted with a traceback."""
    code = (
        "import sys; before = set(sys.modules); import sealgate.cli; loaded = set(sys.modules) - before; "
        "print(len(loaded), sorted({'argparse', 'importlib.metadata', 'msgspec'} & loaded))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    count, heavy = done.stdout.split(maxsplit=1)
    assert int(count) < 10
    assert heavy.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "while_loading"),
    [
        (["--help"], "argparse"),
        (["--help"], "importlib.metadata"),
        (["--help"], "training.commands"),
        (["infer", "--help"], "sealgate.client.commands"),
        (["doctor"], "sealgate.terminal"),
    ],
)
def test_it_may_be_interrupted_while_it_is_loading(arguments: list[str], while_loading: str) -> None:
    code = (
        "import sys, sealgate.cli\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == sys.argv[1]:\n"
        "            raise KeyboardInterrupt\n"
        "sys.modules.pop(sys.argv[1], None)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "sys.exit(sealgate.cli.main(sys.argv[2:]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, while_loading, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "sealgate: interrupted\n")


def test_only_the_command_that_is_asked_for_is_loaded() -> None:
    code = (
        "import sys, sealgate.cli\n"
        "try:\n    sealgate.cli.main(['token', '--help'])\nexcept SystemExit:\n    pass\n"
        "print('training.commands' in sys.modules, 'gateway.commands' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False True\n")


def test_a_command_that_there_is_not_is_told_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["infr"])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert all(f"'{name}'" in said for name in COMMANDS)


def offer(monkeypatch: pytest.MonkeyPatch, run: object, extra: str = "server") -> None:
    command = Command(summary="s", description="d", configure=lambda parser: None, run=run, extra=extra)  # type: ignore[arg-type]

    def parser(_: str = "") -> argparse.ArgumentParser:
        made = argparse.ArgumentParser()
        made.set_defaults(_command=command)
        return made

    monkeypatch.setattr(cli, "build_parser", parser)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(arguments: argparse.Namespace) -> int:
        raise ModuleNotFoundError("no", name="litestar.app")

    offer(monkeypatch, run)
    assert cli.main([]) == 1
    assert capsys.readouterr().err.strip() == (
        "sealgate: this command needs the package 'litestar'; install it, in a checkout of Sealgate, with: "
        "pip install -c constraints.txt '.[server]'"
    )


def test_a_mistake_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(arguments: argparse.Namespace) -> int:
        raise ConfigurationError("mend this")

    offer(monkeypatch, run)
    assert cli.main([]) == 1
    assert capsys.readouterr().err == "sealgate: mend this\n"


def test_a_mistake_that_quotes_others_cannot_drive_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(arguments: argparse.Namespace) -> int:
        raise ConfigurationError("no tenant '\x1b]0;owned\x07\x9b2J\u202e'\nVERIFIED")

    offer(monkeypatch, run)
    assert cli.main([]) == 1
    assert capsys.readouterr().err == "sealgate: no tenant '?]0;owned??2J?'?VERIFIED\n"


def test_a_module_of_ours_that_is_missing_is_a_fault_not_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(arguments: argparse.Namespace) -> int:
        raise ModuleNotFoundError("no", name="gateway.nothing")

    offer(monkeypatch, run)
    with pytest.raises(ModuleNotFoundError):
        cli.main([])


def test_interruption_is_not_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(arguments: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    offer(monkeypatch, run)
    assert cli.main([]) == 130


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            PermissionError(13, "Permission denied", "/their/\x1b[2Jstate"),
            "sealgate: /their/?[2Jstate: Permission denied\n",
        ),
        (OSError(28, "No space left on device"), "sealgate: No space left on device\n"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: OSError, said: str
) -> None:
    def run(arguments: argparse.Namespace) -> int:
        raise fault

    offer(monkeypatch, run)
    assert cli.main([]) == 1
    assert capsys.readouterr().err == said


def test_an_error_of_the_system_that_names_no_file_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(arguments: argparse.Namespace) -> int:
        raise OSError(9, "Bad file descriptor")

    offer(monkeypatch, run)
    with pytest.raises(OSError, match="Bad file"):
        cli.main([])
