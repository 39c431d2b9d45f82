"""Peer: Ray Serve with `serve.batch`, one replica. `python ray_server.py PORT`."""

from __future__ import annotations

import signal
import sys
from typing import Any

import numpy as np
import ray
from model import Served
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
class Bench:
    """The model."""

    def __init__(self) -> None:
        self._served = Served()

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.005)
    async def _run(self, inputs: list[Any]) -> list[Any]:
        labels, scores = self._served.run(np.concatenate(inputs))
        at, answers = 0, []
        for one in inputs:
            answers.append((labels[at : at + len(one)], scores[at : at + len(one)]))
            at += len(one)
        return answers

    async def __call__(self, request: Request) -> Any:
        """JSON of the Open Inference Protocol, or a raw tensor."""
        if request.url.path.startswith("/raw/"):
            labels, scores = await self._run(self._served.from_bytes(await request.body()))
            return Response(scores.tobytes() + labels.tobytes(), media_type="application/octet-stream")
        asked = await request.json()
        found = await self._run(self._served.items(asked["inputs"][0]["data"]))
        return {"model_name": self._served.name, "outputs": self._served.outputs(*found)}


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="warning")
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Bench.bind(), route_prefix="/")
    signal.sigwait([signal.SIGTERM, signal.SIGINT])
    serve.shutdown()
    ray.shutdown()
