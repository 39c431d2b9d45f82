"""Peer: BentoML with adaptive batching, one worker. `python bentoml_server.py PORT`. JSON only.

A batch is put together along the rows: its batching takes arrays, so the answer is the scores alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import bentoml
import numpy as np
from model import Served


@bentoml.service(workers=1, traffic={"timeout": 60, "max_concurrency": 1024}, metrics={"enabled": False})
class Bench:
    """The model."""

    def __init__(self) -> None:
        self._served = Served()

    @bentoml.api(batchable=True, batch_dim=0, max_batch_size=64)
    def infer(self, items: np.ndarray) -> np.ndarray:
        """Scores of the items."""
        return self._served.run(items.astype(self._served.dtype))[1]


if __name__ == "__main__":
    import os

    command = [str(Path(sys.executable).parent / "bentoml"), "serve", "bentoml_server:Bench"]
    os.environ["BENTOML_DO_NOT_TRACK"] = "true"
    os.chdir(Path(__file__).parent)
    os.execv(command[0], [*command, "--host", "127.0.0.1", "--port", sys.argv[1]])
