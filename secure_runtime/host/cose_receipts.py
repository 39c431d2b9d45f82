"""COSE Receipts (RFC 9942) on request: the receipt of an answer or a refusal once more, in the form of other tools.

Signed when the record is durable and its C2SP receipt exists, out of that one, so it costs nothing where nobody asks.
Trusts: the log. Never: holds an answer back for want of a COSE Receipt; the C2SP receipt is there in any case.
"""

from __future__ import annotations

import msgspec

from audit.log import AuditLog
from sealgate.errors import ReceiptError
from sealgate.protocol.frames import Answer, Deny, Frame, Recorded, Refused, Submit
from secure_runtime.host.link_server import Reply


def with_cose_receipt(reply: Reply, frame: Frame, log: AuditLog) -> Reply:
    """The reply to `frame`, with the COSE Receipt that it asks for if there is a receipt."""
    wanted = isinstance(frame, Submit | Deny) and frame.cose
    if not wanted or not isinstance(reply, Answer | Refused | Recorded) or not reply.receipt:
        return reply
    try:
        return msgspec.structs.replace(reply, cose_receipt=log.cose_receipt(reply.receipt))
    except ReceiptError:  # signed under a name that the log has no longer
        return reply
