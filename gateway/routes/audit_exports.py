"""Taking a range of the log away: as an evidence bundle, or as lines in a form that other systems take in.

A range holds every tenant's records, so it needs the right to all of them. A download of lines that broke off is gone
on with by asking again from the first record that is missing: a line is a function of its record, so the parts fit.
(No byte ranges: where a byte of an export lies, nobody knows without writing it again.)
Trusts: the policy's permit; a bundle is checked offline, a line proves nothing. Never: exports before it is on record.
"""

from __future__ import annotations

from typing import Annotated, BinaryIO

from litestar import get
from litestar.di import NamedDependency
from litestar.params import QueryParameter
from litestar.response import Stream

from gateway.audit_exporting import export_stream
from gateway.audit_reading import authorise_reading
from gateway.errors import Problem
from gateway.gate import Asking, Gate
from gateway.routes.audit import Log, Shard
from gateway.routes.openapi import answers
from sealgate.transparency.exports.formats import FORMATS

_REFUSALS = (400, 401, 403, 404, 503)
_BUNDLE = "bundle"
_RECORDED = ("first", "last", "consistent_with", "format", "shard", "kept")
_FORMATS = f"'{_BUNDLE}', {', '.join(repr(name) for name in FORMATS)}"

Number = Annotated[int | None, QueryParameter(ge=0, lt=2**53)]
Needed = Annotated[int, QueryParameter(ge=0, lt=2**53)]
Yes = Annotated[int, QueryParameter(ge=0, le=1)]
Name = Annotated[str, QueryParameter(max_length=32, description=f"One of {_FORMATS}.")]


@get("/audit/v1/exports", responses=answers("application/zip", *_REFUSALS), summary="A range of records, to take away")
async def export(
    request: Asking,
    gate: NamedDependency[Gate],
    first: Needed,
    last: Needed,
    consistent_with: Number = None,
    format: Name = _BUNDLE,  # the parameter's name in the URL
    log: Log = None,
    kept: Yes = 0,
    shard: Shard = None,
) -> Stream:
    """Records `first` to `last`. A bundle (`application/zip`) has everything that proves them and is checked offline by
    `sealgate audit verify`; the other formats have a line a record and prove nothing by themselves. A range from which
    records were pruned is refused as lines; with `kept=1` those that are left of it are given."""
    given = request.query_params
    said = {name: str(given[name]) for name in _RECORDED if name in given}
    may = await authorise_reading(request, gate, "export", kind="audit.export", said=said, log=log)
    reader = may.log.reader
    if format == _BUNDLE:

        def write_bundle(out: BinaryIO) -> None:
            reader.export(first, last, out, consistent_with=consistent_with, origin=shard)

        filename = f"audit-{first}-{last}.zip"
        return await export_stream(gate, may, write_bundle, media_type="application/zip", filename=filename)
    form = FORMATS.get(format)
    if form is None:
        raise Problem("malformed-request", detail=f"The parameter 'format' is one of {_FORMATS}.")
    if consistent_with is not None:
        raise Problem("malformed-request", detail="Only a bundle holds a proof of consistency.")

    def write_lines(out: BinaryIO) -> None:
        reader.export_lines(first, last, out, form=form, kept_only=bool(kept), origin=shard)

    filename = f"audit-{first}-{last}.{form.suffix}"
    return await export_stream(gate, may, write_lines, media_type=form.media_type, filename=filename)


ROUTES = (export,)
