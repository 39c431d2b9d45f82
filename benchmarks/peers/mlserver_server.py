"""Peer: MLServer with a runtime of its own and adaptive batching. `python mlserver_server.py PORT`.

Its settings are its documented ones: one inference process beside the server, up to 64 requests or 5 ms in a batch.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput
from model import Served


class Runtime(MLModel):
    """The model behind the Open Inference Protocol."""

    async def load(self) -> bool:
        """Once in the process that infers."""
        self._served = Served()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """A batch that MLServer put together."""
        labels, scores = self._served.run(self._served.items(payload.inputs[0].data.root))
        return InferenceResponse(
            model_name=self.name,
            outputs=[
                ResponseOutput(name="scores", datatype="FP32", shape=list(scores.shape), data=scores.ravel().tolist()),
                ResponseOutput(name="label", datatype="INT64", shape=[len(labels), 1], data=labels.tolist()),
            ],
        )


def main() -> None:
    """Write the two settings files and start the server."""
    port = int(sys.argv[1])
    name = Served().name
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        settings = {
            "host": "127.0.0.1",
            "http_port": port,
            "grpc_port": _port_beside(),
            "metrics_port": _port_beside(),
            "parallel_workers": 1,
            "debug": False,
            "logging_settings": None,
        }
        model = {
            "name": name,
            "implementation": "mlserver_server.Runtime",
            "max_batch_size": 64,
            "max_batch_time": 0.005,
            "parameters": {},
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        (folder / "model-settings.json").write_text(json.dumps(model))
        subprocess.run([str(Path(sys.executable).parent / "mlserver"), "start", str(folder)], check=False)


def _port_beside() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
