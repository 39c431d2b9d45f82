"""One request on a connection and its answer, as uvicorn runs it, and a shorter way in and out for those in one piece.

Two extensions of the scope are functions. `scope["extensions"][ARRIVED]()` gives a body that is here already, which is
then not waited for. `scope["extensions"][WHOLE](status, fields, body)` sends an answer that is ready: head and body
leave in one write, and only their joints are looked at. Its fields say Content-Length, and nothing about the connection
or an encoding of the transfer. Where one of them cannot do its work it says so, and ASGI's messages are the way.

Trusts: the application. Never: writes a header field that would end its line, or a second answer.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

Fields = list[tuple[bytes, bytes]]
WHOLE = "gateway.response.whole"
ARRIVED = "gateway.request.arrived"


class Exchange(RequestResponseCycle):
    """See RequestResponseCycle."""

    def arrived(self) -> bytes | None:
        """The body, or what `receive` left of it, if all is here; None for one that must be waited for, or is gone."""
        if self.more_body or self.disconnected or self.waiting_for_100_continue or not self.message_event.is_set():
            return None
        self.message_event.clear()
        self.flow.resume_reading()
        body, self.body = bytes(self.body), bytearray()
        return body

    def answer_whole(self, status: int, fields: Fields, body: bytes) -> bool:
        """Send it; False for a connection that takes nothing now: then it is still to be sent."""
        if self.flow.write_paused or self.disconnected:
            return False
        if self.response_started:
            raise RuntimeError("an answer follows an answer")
        self.response_started, self.waiting_for_100_continue = True, False
        fields = [*self.default_headers, *fields]
        if not self.keep_alive:
            fields.append((b"connection", b"close"))
        lines = [b"%b: %b" % field for field in fields]
        said = b"".join(lines)
        if b"\n" in said or b"\r" in said or b"\0" in said:
            raise RuntimeError("a header field would end its line")
        # It leaves with the turn: its line in the log is there by then.
        self.transport.write(STATUS_LINE[status] + b"\r\n".join([*lines, b"", body]))
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
        return True
