"""What each request of a sweep took, in time and in processor time: figures for metrics, traces and billing.

Requests are opened and sealed one after the other by the one thread, so what that took is shared out evenly; a batch is
shared by rows (see `engine.answers.Share`). Trusts: the kernel's clocks. Never: sees a request, or is signed for: who
wants to be paid by these figures trusts the worker's word for them.
"""

from __future__ import annotations

from collections.abc import Callable

from sealgate.ambient import monotonic_ns, process_cpu_ns
from sealgate.protocol.frames import Took
from secure_runtime.worker.engine.answers import Share

Ticks = Callable[[], int]
"""Nanoseconds, for differences."""


class SweepMeter:
    """One for each sweep: made before the first request is opened; `opened` once all are; then `took` for each answer,
    after it was sealed."""

    def __init__(self, *, time: Ticks = monotonic_ns, cpu: Ticks = process_cpu_ns) -> None:
        self._time = time
        self._cpu = cpu
        self._began = time()
        self._cpu_began = cpu()
        self._open_us = self._open_cpu_us = self._together = 0
        self._at = self._began

    def opened(self, requests: int) -> None:
        """All of the sweep's requests are through the gatekeeper, or turned away by it."""
        self._together = requests
        each = 1000 * max(requests, 1)
        self._at = self._time()
        self._open_us = (self._at - self._began) // each
        self._open_cpu_us = (self._cpu() - self._cpu_began) // each

    def seals(self) -> None:
        """The answer that `took` is asked about next is about to be sealed."""
        self._at = self._time()

    def took(self, share: Share | None) -> Took:
        """What the answer that was just sealed took; `share` is what the engine says of it, None where nothing ran.
        Sealing waits for nothing, so its time is its processor time."""
        seal_us = (self._time() - self._at) // 1000
        cpu_us = self._open_cpu_us + seal_us
        if share is None:
            return Took(self._open_us, 0, seal_us, cpu_us, together=self._together)
        cpu_us += share.cpu_us
        return Took(self._open_us, share.run_us, seal_us, cpu_us, share.rows, share.batch_rows, self._together)

    def refused(self) -> Took:
        """What a request took that was turned away."""
        return Took(self._open_us, 0, 0, self._open_cpu_us, together=self._together)
