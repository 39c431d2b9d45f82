"""A whole answer is the same, to the byte, as one in ASGI's two messages; no field of it can end its line."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from uvicorn.protocols.http.flow_control import FlowControl

from gateway.exchange import WHOLE, Exchange
from gateway.gathered_writes import GatheredWrites

_FIELDS = [(b"audit-record", b"l 7"), (b"content-type", b"message/ohttp-res"), (b"content-length", b"6")]


class _Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def _said(messages: list[dict[str, Any]], *, keep_alive: bool = True) -> tuple[list[bytes], Exchange, _Transport]:
    transport = _Transport()

    async def main() -> Exchange:
        writes: Any = GatheredWrites(transport, asyncio.get_running_loop())  # type: ignore[arg-type]
        exchange = Exchange(
            {"method": "POST", "type": "http"},  # type: ignore[typeddict-item]
            writes,
            FlowControl(writes),
            logging.getLogger("uvicorn.error"),
            logging.getLogger("uvicorn.access"),
            False,
            [(b"date", b"now")],
            asyncio.Event(),
            False,
            keep_alive,
            lambda: None,
        )
        for message in messages:
            await exchange.send(message)
        await asyncio.sleep(0)
        return exchange

    exchange = asyncio.run(main())
    return transport.written, exchange, transport


@pytest.mark.parametrize("keep_alive", [True, False])
def test_a_whole_answer_is_the_two_messages_in_one_write(keep_alive: bool) -> None:
    start = {"type": "http.response.start", "status": 200, "headers": _FIELDS}
    body = {"type": "http.response.body", "body": b"sealed", "more_body": False}
    apart, _, _ = _said([start, body], keep_alive=keep_alive)
    whole = {"type": WHOLE, "status": 200, "headers": _FIELDS, "body": b"sealed"}
    together, exchange, transport = _said([whole], keep_alive=keep_alive)
    assert len(together) == 1
    assert together == [b"".join(apart)]
    assert exchange.response_complete
    assert transport.closed is not keep_alive


@pytest.mark.parametrize("value", [b"l\r\nx: y", b"l\ny", b"l\ry", b"l\0"])
@pytest.mark.parametrize("place", [0, 1])
def test_a_field_that_would_end_its_line_is_not_written(value: bytes, place: int) -> None:
    field = (value, b"x") if place == 0 else (b"audit-record", value)
    with pytest.raises(RuntimeError):
        _said([{"type": WHOLE, "status": 200, "headers": [field, *_FIELDS], "body": b"sealed"}])


def test_a_second_answer_is_not_written() -> None:
    whole = {"type": WHOLE, "status": 200, "headers": _FIELDS, "body": b"sealed"}
    with pytest.raises(RuntimeError):
        _said([whole, whole])
