"""One request on a connection and its answer, as uvicorn runs it, and a shorter way out for an answer in one piece.

An application that has its whole answer ready may send it as one message of the type WHOLE, where the scope has the
extension of that name: head and body then leave in one write, and only their joints are looked at. It has `status`,
`headers` and `body`, as ASGI's two messages have them; the headers say Content-Length, and nothing about the connection
or an encoding of the transfer. Every other answer goes uvicorn's way.

Trusts: the application. Never: writes a header field that would end its line, or a second answer.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

WHOLE = "gateway.response.whole"


class Exchange(RequestResponseCycle):
    """See RequestResponseCycle."""

    async def send(self, message: Any) -> None:
        """An ASGI message, or one of the type WHOLE."""
        if message["type"] != WHOLE:
            await super().send(message)
            return
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if self.response_started:
            raise RuntimeError("an answer follows an answer")
        self.response_started, self.waiting_for_100_continue = True, False
        fields = [*self.default_headers, *message["headers"]]
        if not self.keep_alive:
            fields.append((b"connection", b"close"))
        head = b"%b%b\r\n" % (STATUS_LINE[message["status"]], b"".join([b"%b: %b\r\n" % field for field in fields]))
        if head.count(b"\n") != len(fields) + 2 or head.count(b"\r") != len(fields) + 2 or b"\0" in head:
            raise RuntimeError("a header field would end its line")
        self.transport.write(head + message["body"])  # which leaves with the turn: its line in the log is there by then
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
