"""The peer: the same model behind bare Litestar on uvicorn with TLS 1.3, without sealing, authentication or audit.

Run by `benchmarks.sealed_path`: `python -m benchmarks.plain_server STATE BUNDLE PORT`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import uvicorn
from litestar import Litestar, Request, Response, post

from sealgate.certificate.publishers import load_publishers
from sealgate.protocol import inference
from secure_runtime.models.bundle import load_bundle
from secure_runtime.worker.engine.tensors import from_torch, to_model


def build(state: Path, bundle: Path) -> Litestar:
    """One route that decodes, runs and encodes exactly as the worker does."""
    torch.set_num_threads(1)
    model = load_bundle(bundle, load_publishers(state / "publishers.toml"))
    spec = model.manifest.inputs[0]

    @post("/v2/models/{name:str}/infer", status_code=200)
    async def infer(name: str, request: Request) -> Response[bytes]:  # type: ignore[type-arg]
        fields = tuple(request.headers.items())
        decoded, binary = inference.decode_infer_request(fields, await request.body())
        outputs = model.predict({spec.name: to_model(decoded.inputs[0], spec)})
        tensors = tuple(from_torch(out.name, outputs[out.name], out.datatype) for out in model.manifest.outputs)
        answer = inference.InferResponse(model_name=name, model_version=model.facts.version, outputs=tensors)
        headers, body = inference.encode_infer_response(answer, binary_outputs=binary)
        return Response(body, headers=dict(headers), media_type=dict(headers)["content-type"])

    return Litestar([infer])


def main() -> None:
    """Serve until killed."""
    state, bundle, port = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    uvicorn.run(
        build(state, bundle),
        host="127.0.0.1",
        port=port,
        log_level="warning",
        access_log=False,
        ssl_certfile=str(state / "pki" / "server.pem"),
        ssl_keyfile=str(state / "pki" / "server.key"),
    )


if __name__ == "__main__":
    main()
