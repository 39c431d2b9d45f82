"""Peer: KServe's Python model server. `python kserve_server.py PORT`. It has no batching of its own.

(KServe's batcher is a separate process of a Kubernetes pod, and is not in the package.)
"""

from __future__ import annotations

import sys
from typing import Any

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from model import Served


class Runtime(Model):
    """The model behind the Open Inference Protocol."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.load()

    def load(self) -> bool:
        """Once."""
        self._served = Served()
        self.ready = True
        return True

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> InferResponse:
        """One request."""
        assert isinstance(payload, InferRequest)
        labels, scores = self._served.run(payload.inputs[0].as_numpy().astype(self._served.dtype, copy=False))
        outputs = []
        for name, kind, values in (("scores", "FP32", scores), ("label", "INT64", labels)):
            output = InferOutput(name=name, datatype=kind, shape=list(values.shape))
            output.set_data_from_numpy(values, binary_data=bool(payload.use_binary_outputs))
            outputs.append(output)
        return InferResponse(
            model_name=self.name, infer_outputs=outputs, response_id="1", use_binary_outputs=payload.use_binary_outputs
        )


if __name__ == "__main__":
    runtime = Runtime(Served().name)
    ModelServer(
        http_port=int(sys.argv[1]),
        workers=1,
        enable_grpc=False,
        enable_docs_url=False,
        enable_latency_logging=False,
        access_log_format=None,
    ).start([runtime])
