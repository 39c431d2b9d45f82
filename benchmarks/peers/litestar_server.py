"""Peer: bare Litestar on uvicorn, with msgspec for JSON. `python litestar_server.py PORT [--workers N] [--inline]`.

The handler runs in Litestar's thread pool, as its guide says of work that blocks; with --inline on the event loop.
"""

from __future__ import annotations

import argparse
from typing import Any

import msgspec
import uvicorn
from litestar import Litestar, Request, Response, get, post
from model import Served


class Tensor(msgspec.Struct):
    """An input tensor of the Open Inference Protocol."""

    name: str
    datatype: str
    shape: list[int]
    data: list[float]


class Asked(msgspec.Struct):
    """A request of the Open Inference Protocol."""

    inputs: list[Tensor]


def build(*, inline: bool = False) -> Litestar:
    """The application: one route for JSON, one for a raw tensor."""
    served = Served()

    def infer_json(name: str, data: Asked) -> dict[str, Any]:
        return {"model_name": name, "outputs": served.outputs(*served.run(served.items(data.inputs[0].data)))}

    def run_raw(body: bytes) -> bytes:
        labels, scores = served.run(served.from_bytes(body))
        return scores.tobytes() + labels.tobytes()

    if inline:

        @post("/raw/{name:str}", status_code=200)
        async def infer_raw(name: str, request: Request[Any, Any, Any]) -> Response[bytes]:
            return Response(run_raw(await request.body()), media_type="application/octet-stream")

    else:

        @post("/raw/{name:str}", status_code=200, sync_to_thread=True)
        def infer_raw(name: str, body: bytes) -> Response[bytes]:
            return Response(run_raw(body), media_type="application/octet-stream")

    @get("/ready", sync_to_thread=False)
    def ready() -> str:
        return "ready"

    route = post("/v2/models/{name:str}/infer", status_code=200, sync_to_thread=not inline)
    return Litestar([route(infer_json), infer_raw, ready], openapi_config=None)


def app() -> Litestar:
    """For uvicorn's workers."""
    return build()


def app_inline() -> Litestar:
    """The same on the event loop."""
    return build(inline=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--inline", action="store_true")
    given = parser.parse_args()
    name = "litestar_server:app_inline" if given.inline else "litestar_server:app"
    uvicorn.run(
        name, factory=True, host="127.0.0.1", port=given.port, workers=given.workers, log_level="warning",
        access_log=False, timeout_worker_healthcheck=3600, loop="uvloop", http="httptools",
    )  # fmt: skip
