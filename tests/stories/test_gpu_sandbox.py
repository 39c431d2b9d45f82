"""The sandbox of a worker with a GPU, around a worker that serves: with stand-ins for devices, and with a real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sealgate.errors import SealgateError
from secure_runtime.machine import gpu_nodes
from tests.live import MODEL, Live, wait_until

WITH_GPU = "tests.sealgate_with_gpu"


def on(live: Live, device: str) -> Live:
    settings = live.root / "deployment.toml"
    settings.write_text(settings.read_text().replace("[runtime]\n", f'[runtime]\ndevice = "{device}"\n', 1))
    return live


def test_a_worker_that_is_shown_a_gpu_serves_and_says_what_is_open(fresh: Callable[[], Live], tmp_path: Path) -> None:
    live = on(fresh(), "cpu")
    live.start("runtime", module=WITH_GPU)
    live.start("gateway")
    live.ready()
    with live.session() as session:
        result: Any = session.infer(MODEL, live.rows[:3])
    assert len(result.labels) == 3
    layer = result.evidence.claims.layers["no-gpu-driver"]
    assert (layer.state, layer.detail.endswith("/dev/zero, /dev/full")) == ("disabled", True)
    claims = result.evidence.claims
    assert claims.degraded == (claims.profile == "dev")  # no profile forbids it; who minds says so:
    trust = live.trust / "trust.toml" if live.trust.is_dir() else live.trust
    trust.write_text('required_layers = ["no-gpu-driver"]\n' + trust.read_text())
    with live.session() as session, pytest.raises(SealgateError) as refused:
        session.infer(MODEL, live.rows[:1])
    assert refused.value.code == "layers"


def test_a_gpu_that_torch_cannot_use_is_said_and_nothing_is_served(fresh: Callable[[], Live]) -> None:
    live = on(fresh(), "auto")
    live.start("runtime", module=WITH_GPU)
    words = 'torch cannot use the GPU that is shown (/dev/zero, /dev/full); mend its driver, or set device = "cpu"'
    wait_until(lambda: words in live.said("runtime"), within_s=60, what="the refusal")


def test_with_a_real_gpu_the_sandboxed_worker_computes_on_it(fresh: Callable[[], Live]) -> None:
    if not (torch.cuda.is_available() and gpu_nodes("auto")):
        pytest.skip("NO GPU HERE: that a sandboxed worker computes on one was not shown by this test run")
    live = fresh()
    live.start()
    live.ready()
    with live.session() as session:
        result: Any = session.infer(MODEL, live.rows[:3])
    assert result.evidence.claims.device.startswith("cuda")
    assert result.evidence.claims.layers["no-gpu-driver"].state == "disabled"
