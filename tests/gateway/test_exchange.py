"""A whole answer is the same, to the byte, as one in ASGI's two messages; no field of it can end its line. A body that
has arrived is handed out once, and only when all of it is here."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from uvicorn.protocols.http.flow_control import FlowControl

from gateway.exchange import Exchange
from gateway.gathered_writes import GatheredWrites

_FIELDS = [(b"audit-record", b"l 7"), (b"content-type", b"message/ohttp-res"), (b"content-length", b"6")]


_Answer = dict[str, Any] | tuple[int, list[tuple[bytes, bytes]], bytes]


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


def _exchange(transport: _Transport, *, keep_alive: bool = True, expects: bool = False) -> Exchange:
    writes: Any = GatheredWrites(transport, asyncio.get_running_loop())  # type: ignore[arg-type]
    return Exchange(
        {"method": "POST", "type": "http"},  # type: ignore[typeddict-item]
        writes,
        FlowControl(writes),
        logging.getLogger("uvicorn.error"),
        logging.getLogger("uvicorn.access"),
        False,
        [(b"date", b"now")],
        asyncio.Event(),
        expects,
        keep_alive,
        lambda: None,
    )


def _said(*answers: _Answer, keep_alive: bool = True) -> tuple[list[bytes], Exchange, _Transport]:
    """What is written of ASGI's messages, and of the arguments of whole answers."""
    transport = _Transport()

    async def main() -> Exchange:
        exchange = _exchange(transport, keep_alive=keep_alive)
        for answer in answers:
            if isinstance(answer, tuple):
                assert exchange.answer_whole(*answer)
            else:
                await exchange.send(answer)  # type: ignore[arg-type]
        await asyncio.sleep(0)
        return exchange

    exchange = asyncio.run(main())
    return transport.written, exchange, transport


@pytest.mark.parametrize("keep_alive", [True, False])
def test_a_whole_answer_is_the_two_messages_in_one_write(keep_alive: bool) -> None:
    start = {"type": "http.response.start", "status": 200, "headers": _FIELDS}
    body = {"type": "http.response.body", "body": b"sealed", "more_body": False}
    apart, _, _ = _said(start, body, keep_alive=keep_alive)
    together, exchange, transport = _said((200, _FIELDS, b"sealed"), keep_alive=keep_alive)
    assert len(together) == 1
    assert together == [b"".join(apart)]
    assert exchange.response_complete
    assert transport.closed is not keep_alive


@pytest.mark.parametrize("value", [b"l\r\nx: y", b"l\ny", b"l\ry", b"l\0"])
@pytest.mark.parametrize("place", [0, 1])
def test_a_field_that_would_end_its_line_is_not_written(value: bytes, place: int) -> None:
    field = (value, b"x") if place == 0 else (b"audit-record", value)
    with pytest.raises(RuntimeError):
        _said((200, [field, *_FIELDS], b"sealed"))


def test_a_second_answer_is_not_written() -> None:
    with pytest.raises(RuntimeError):
        _said((200, _FIELDS, b"sealed"), (200, _FIELDS, b"sealed"))


def test_a_connection_that_takes_nothing_now_is_not_written_to() -> None:
    async def main() -> None:
        transport = _Transport()
        exchange = _exchange(transport)
        exchange.flow.pause_writing()
        assert not exchange.answer_whole(200, _FIELDS, b"sealed")
        exchange.flow.resume_writing()
        exchange.disconnected = True
        assert not exchange.answer_whole(200, _FIELDS, b"sealed")
        await asyncio.sleep(0)
        assert not transport.written
        assert not exchange.response_started

    asyncio.run(main())


def test_a_body_is_handed_out_once_and_only_whole() -> None:
    async def main() -> None:
        exchange = _exchange(_Transport())
        exchange.body += b"sea"
        exchange.message_event.set()
        assert exchange.arrived() is None
        exchange.body += b"led"
        exchange.more_body = False
        exchange.flow.pause_reading()
        assert exchange.arrived() == b"sealed"
        assert not exchange.flow.read_paused
        assert exchange.arrived() is None

    asyncio.run(main())


def test_a_body_that_was_received_has_not_arrived_a_second_time() -> None:
    async def main() -> None:
        exchange = _exchange(_Transport())
        exchange.body, exchange.more_body = bytearray(b"sealed"), False
        exchange.message_event.set()
        assert (await exchange.receive())["body"] == b"sealed"  # type: ignore[typeddict-item]
        assert exchange.arrived() is None

    asyncio.run(main())


def test_who_waits_to_be_told_to_go_on_is_told() -> None:
    async def main() -> None:
        exchange = _exchange(_Transport(), expects=True)
        exchange.body, exchange.more_body = bytearray(b"sealed"), False
        exchange.message_event.set()
        assert exchange.arrived() is None

    asyncio.run(main())
