"""Peer: LitServe with its batching: one worker, up to 64 requests, 5 ms. `python litserve_server.py PORT`.

A request of 32 items counts as one of the batch; the items of a batch are run together. It reads JSON and forms only.
"""

from __future__ import annotations

import sys
from typing import Any

import litserve
import numpy as np
from model import Served


class JsonApi(litserve.LitAPI):
    """The Open Inference Protocol in JSON."""

    def setup(self, device: str) -> None:
        """Once in the worker."""
        self.served = Served()

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # LitServe reads annotations
        """One request to its items."""
        return self.served.items(request["inputs"][0]["data"])

    def batch(self, inputs: list[Any]) -> Any:
        """Requests to one array, and how it was put together."""
        return np.concatenate(inputs), [len(one) for one in inputs]

    def predict(self, inputs: Any) -> Any:
        """Run what came together."""
        items, counts = inputs
        return *self.served.run(items), counts

    def unbatch(self, outputs: Any) -> Any:
        """Answers of single requests again."""
        labels, scores, counts = outputs
        ends = np.cumsum(counts)[:-1]
        return list(zip(np.split(labels, ends), np.split(scores, ends), strict=True))

    def encode_response(self, output):  # type: ignore[no-untyped-def]
        """To JSON."""
        return {"model_name": self.served.name, "outputs": self.served.outputs(*output)}


if __name__ == "__main__":
    name = Served().name
    batched = {"max_batch_size": 64, "batch_timeout": 0.005}
    server = litserve.LitServer(
        [JsonApi(api_path=f"/v2/models/{name}/infer", **batched)],
        accelerator="cpu",
        workers_per_device=1,
    )
    server.run(
        port=int(sys.argv[1]), host="127.0.0.1", num_api_servers=1, log_level="warning", generate_client_file=False
    )
