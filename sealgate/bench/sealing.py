"""Sealed requests made before they are sent, and their answers verified and opened after: by the client's own code.

`SealedChannel.exchange` is a generator that stops where a request is to be sent. Driving it to there seals; handing it
the answer later verifies receipt, log and worker, and opens. So the load generator sends what a real client would send,
and what it times is the service alone.

Trusts: the trust file. Never: accepts an answer whose receipt, evidence or seal does not hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import httpx

from sealgate.ambient import monotonic_ns
from sealgate.bench.load import Answer, LoadFailed, http_request
from sealgate.client.credentials import Credential
from sealgate.client.exchange import Flow, SealedAnswer, SealedChannel
from sealgate.client.messages import InnerRequest, OuterRequest, OuterResponse
from sealgate.evidence.trust import Trust
from sealgate.limits import DATE_WINDOW_S

_SEALING_S = DATE_WINDOW_S / 4  # before they are sent
_TRIES = 200  # to meet every worker: they come up one after the other


@dataclass
class _Waiting:
    """A request that is sealed, and the flow that waits for its answer."""

    flow: Flow
    raw: bytes


class Sealer:
    """Makes sealed requests of one caller. `http` reaches the gateway, for evidence; `host` is the Host field.

    A client's evidence is of one worker, and its requests are sealed to that one. So for several `workers` it is as
    many clients, whose requests take turns.
    """

    def __init__(
        self, trust: Trust, token: str, *, http: httpx.Client, purpose: str, host: str, workers: int = 1
    ) -> None:
        self._channels = tuple(SealedChannel(trust) for _ in range(workers))
        self._turn = cycle(self._channels)
        self._credential = Credential(token=token, certificate=None)
        self._http = http
        self._purpose = purpose
        self._host = host
        self._waiting: list[_Waiting] = []

    def renew(self) -> None:
        """Fetch and verify evidence now, outside any measured time; LoadFailed where not every worker shows its own."""
        for _ in range(_TRIES):
            for channel in self._channels:
                self._renew(channel)
            shown = {channel.evidence.state_digest for channel in self._channels if channel.evidence is not None}
            if len(shown) == len(self._channels):
                return
        raise LoadFailed(f"{len(self._channels)} workers are to be measured, and {len(shown)} showed evidence")

    def _renew(self, channel: SealedChannel) -> None:
        flow = channel.renew()
        asked: OuterRequest = next(flow)
        while True:
            answer = self._http.request(asked.method, asked.path, headers=list(asked.headers))
            response = OuterResponse(status=answer.status_code, headers=dict(answer.headers), body=answer.content)
            try:
                asked = flow.send(response)
            except StopIteration:
                return

    def seal(self, path: str, fields: Sequence[tuple[str, str]], body: bytes, *, count: int) -> None:
        """Seal `count` times the same inner request, in place of those that were sealed before.

        Fewer where that takes longer than `_SEALING_S`: a request that was sealed long ago is refused.
        """
        if any(channel.evidence is None for channel in self._channels):
            self.renew()
        self._waiting = []
        until = monotonic_ns() + int(_SEALING_S * 1e9)
        while len(self._waiting) < count and (monotonic_ns() < until or not self._waiting):
            self._waiting.append(self._one(path, tuple(fields), body))

    def _one(self, path: str, fields: tuple[tuple[str, str], ...], body: bytes) -> _Waiting:
        method = "POST" if body else "GET"
        inner = InnerRequest(method=method, path=path, fields=fields, body=body, purpose=self._purpose)
        flow = next(self._turn).exchange(inner, self._credential)
        outer = next(flow)
        if outer.method != "POST":
            raise LoadFailed("the evidence expired, or does not name the model, while requests were sealed")
        return _Waiting(flow, http_request(outer.method, outer.path, dict(outer.headers), outer.body, host=self._host))

    def requests(self) -> Iterator[bytes]:
        """The sealed requests, in order."""
        return (waiting.raw for waiting in self._waiting)

    def open(self, answer: Answer) -> SealedAnswer:
        """Verify the answer's receipt and open it; raises what a client raises."""
        response = OuterResponse(status=answer.status, headers=answer.fields(), body=answer.body)
        try:
            self._waiting[answer.number].flow.send(response)
        except StopIteration as done:
            opened: SealedAnswer = done.value
            return opened
        raise LoadFailed("the service asks to be asked again: its keys changed")

    def close(self) -> None:
        """Close the connection that evidence comes by."""
        self._http.close()
