"""Any httpx program speaks sealed inference by changing one argument: the transport.

    python examples/any_httpx_program.py TRUST MODEL PURPOSE < token

The request below is an ordinary Open Inference Protocol request, and the answer an ordinary response. Between them lie
evidence, seal and receipt; what was verified stands in `response.extensions["sealgate"]`.
"""

from __future__ import annotations

import sys

import httpx

from sealgate import SealedTransport


def main(trust: str, model: str, purpose: str) -> int:
    """Read the model's metadata and send one row of zeros."""
    token = sys.stdin.readline().strip()
    transport = SealedTransport(trust, purpose=purpose, token=token)
    with httpx.Client(transport=transport, base_url=transport.trust.url) as client:
        tensor = client.get(f"/v2/models/{model}").json()["inputs"][0]
        width = tensor["shape"][1]
        row = {"name": tensor["name"], "datatype": tensor["datatype"], "shape": [1, width], "data": [0.0] * width}
        response = client.post(f"/v2/models/{model}/infer", json={"inputs": [row]})
        print(response.json()["outputs"])
        print("record", response.extensions["sealgate"].receipt.index)
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
