"""Peer: PyTriton, whose wheel carries Triton. `python pytriton_server.py PORT`. Triton's dynamic batcher, up to 64
rows.

Triton (C++) parses HTTP and batches; a process of this interpreter runs the batches, and needs its shared library.
"""

from __future__ import annotations

import os
import socket
import sys
import sysconfig
from typing import Any

import numpy as np
from model import Served
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    """Serve until killed."""
    os.environ["LD_LIBRARY_PATH"] = str(sysconfig.get_config_var("LIBDIR"))
    served = Served()

    @batch
    def infer(**inputs: Any) -> dict[str, Any]:
        labels, scores = served.run(inputs[served.input])
        return {"scores": scores, "label": labels.reshape(-1, 1)}

    config = TritonConfig(
        http_port=int(sys.argv[1]),
        http_address="127.0.0.1",
        grpc_port=_free_port(),
        metrics_port=_free_port(),
        log_verbose=0,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name=served.name,
            infer_func=infer,
            inputs=[Tensor(name=served.input, dtype=served.dtype, shape=served.shape)],
            outputs=[
                Tensor(name="scores", dtype=np.float32, shape=(served.classes,)),
                Tensor(name="label", dtype=np.int64, shape=(1,)),
            ],
            config=ModelConfig(max_batch_size=64, batcher=DynamicBatcher(max_queue_delay_microseconds=1000)),
            strict=False,
        )
        triton.serve()


if __name__ == "__main__":
    main()
