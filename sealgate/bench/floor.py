"""The floor: what a request of one caller needs at the least, and how far the service is from it.

The model's run, the arithmetic of the key exchange and the cipher, and two waits for the disk. Nothing else of what the
service does is necessary for an answer and its two records; that it does more is its price for being one.
Trusts: the deployment's own figure for the model's run. Never: touches a key of the deployment.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sealgate.ambient import monotonic_ns, random_bytes
from sealgate.bench.load import percentile
from sealgate.bench.measures import Asked, Table, timed_us

_SYNCS = 30
_TIMES = 40


def floor(asked: Mapping[int, Asked], folder: Path) -> Table:
    """What the arithmetic and the disk alone need for a request of one caller, and how far we are from it."""
    sync_us = _sync_us(folder)
    one = asked[min(asked)]
    open_us, seal_us = _exchange_us()
    model_us = one.steps_us.get("run", 0.0)
    least = model_us + open_us + seal_us + 2 * sync_us
    measured = percentile(one.run.latencies_us, 0.5)
    table = Table(
        "Floor: one caller, one row (us)",
        ("part", "us", ""),
        [
            ("model", f"{model_us:.0f}", "step 8 of one row" if model_us else "not known without the metrics page"),
            ("key exchange and opening", f"{open_us:.0f}", "X-Wing and AEAD, the library alone"),
            ("sealing the answer", f"{seal_us:.0f}", "AEAD, the library alone"),
            ("two waits for the disk", f"{2 * sync_us:.0f}", f"fdatasync of 4 KiB there: median {sync_us:.0f}"),
            ("floor", f"{least:.0f}", ""),
            ("measured", f"{measured:.0f}", f"p50 of one caller: {measured / least:.1f} times the floor"),
        ],
    )
    table.numbers = {"floor_us": least, "measured_us": measured, "fsync_us": sync_us, "model_us": model_us}
    busiest = asked[max(asked)]
    if busiest.cpu_us:
        total = sum(busiest.cpu_us.values())
        compute = open_us + seal_us + model_us
        table.rows.append(
            (
                "processor time",
                f"{total:.0f}",
                f"a request at {max(asked)} callers; arithmetic of one alone: {compute:.0f}",
            )
        )
        table.numbers |= {"cpu_us": total, "arithmetic_us": compute}
    return table


def _sync_us(folder: Path) -> float:
    """Waiting for 4 KiB to be on the disk of `folder`: the median."""
    path = folder / f".bench-{random_bytes(4).hex()}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        times = []
        for _ in range(_SYNCS):
            os.write(descriptor, bytes(4096))
            times.append(timed_us(lambda: os.fdatasync(descriptor)))
        return statistics.median(times)
    finally:
        os.close(descriptor)
        path.unlink()


def _exchange_us() -> tuple[float, float]:
    """What X-Wing and a cipher need to open 1 KiB, and the cipher to seal 256 bytes, by the library alone."""
    lattice, curve = MLKEM768PrivateKey.generate(), X25519PrivateKey.generate()
    cipher, nonce = AESGCM(random_bytes(16)), bytes(12)
    opened, sealed = [], []
    for _ in range(_TIMES):
        _, sent = lattice.public_key().encapsulate()
        other = X25519PrivateKey.generate().public_key()
        text = cipher.encrypt(nonce, bytes(1024), None)
        began = monotonic_ns()
        lattice.decapsulate(sent)
        curve.exchange(other)
        cipher.decrypt(nonce, text, None)
        between = monotonic_ns()
        cipher.encrypt(nonce, bytes(256), None)
        opened.append((between - began) / 1000)
        sealed.append((monotonic_ns() - between) / 1000)
    return statistics.median(opened), statistics.median(sealed)
