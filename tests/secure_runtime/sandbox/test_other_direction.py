"""Another process of the same user, a gateway that was broken into say, is after the worker's memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ATTACKER = Path(__file__).with_name("attacker.py")
SITUATIONS = ["root", "user", "user-no-namespaces", "root-no-admin", "root-no-namespaces"]
SEALED = "from secure_runtime.worker import sandbox; sandbox.seal(report); tell('sealed')"
LOADING = "tell('loading')"


@pytest.mark.root
@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("payload", [SEALED, LOADING], ids=["serving", "loading"])
def test_the_same_user_cannot_look_into_a_worker(boot_as: Callable[..., Any], situation: str, payload: str) -> None:
    ended = boot_as(situation, payload, attacker=ATTACKER)
    ended.must()
    worker, plain = ended.attacked
    assert set(plain.values()) == {"reached"}, "the attacks do not even work on a plain process"
    assert set(worker) == set(plain)
    assert {name: answer for name, answer in worker.items() if answer not in ("EACCES", "EPERM")} == {}
