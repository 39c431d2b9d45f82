"""Peer: FastAPI on uvicorn, with pydantic models. `python fastapi_server.py PORT`.

Handlers are plain functions, which FastAPI runs in its thread pool, as its guide says of work that blocks.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import uvicorn
from fastapi import Body, FastAPI, Response
from model import Served
from pydantic import BaseModel


class Tensor(BaseModel):
    """An input tensor of the Open Inference Protocol."""

    name: str
    datatype: str
    shape: list[int]
    data: list[float]


class Asked(BaseModel):
    """A request of the Open Inference Protocol."""

    inputs: list[Tensor]


class Output(BaseModel):
    """An output tensor."""

    name: str
    datatype: str
    shape: list[int]
    data: list[float]


class Answered(BaseModel):
    """An answer."""

    model_name: str
    outputs: list[Output]


app = FastAPI()
served = Served()


@app.post("/v2/models/{name}/infer")
def infer(name: str, asked: Asked) -> Answered:
    """JSON."""
    outputs: Any = served.outputs(*served.run(served.items(asked.inputs[0].data)))
    return Answered(model_name=name, outputs=outputs)


@app.post("/raw/{name}")
def raw(name: str, body: Annotated[bytes, Body(media_type="application/octet-stream")]) -> Response:
    """A raw tensor."""
    labels, scores = served.run(served.from_bytes(body))
    return Response(scores.tobytes() + labels.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    uvicorn.run(
        app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False, loop="uvloop",
        http="httptools",
    )  # fmt: skip
