"""`sealgate infer`: rows, pictures or texts through a sealed session, answers as a table or JSON, and the receipt."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealgate.command import Command

if TYPE_CHECKING:
    from sealgate.client.metadata import ModelMetadata
    from sealgate.client.results import InferResult


def _configure(parser: argparse.ArgumentParser) -> None:
    from sealgate.client.arguments import add_connection
    from sealgate.client.sources import add_source

    parser.add_argument("--model", required=True, metavar="NAME", help="the model to ask")
    parser.add_argument("--version", metavar="V", help="a certain version of it")
    parser.add_argument("--purpose", required=True, metavar="P", help="what you ask for; the policy decides by it")
    add_source(parser)
    parser.add_argument("--receipt-out", type=Path, metavar="FILE", help="keep the audit receipt")
    parser.add_argument(
        "--cose-out", type=Path, metavar="FILE", help="keep it as COSE Receipt (RFC 9942) too; its leaf: FILE.leaf"
    )
    parser.add_argument("--strict", action="store_true", help="treat every skipped check of the evidence as a failure")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--explain", action="store_true", help="print what was verified, step by step")
    add_connection(parser)


def _run(arguments: argparse.Namespace) -> int:
    from sealgate.client.arguments import read_connection
    from sealgate.client.errors import EvidenceRefused, InferenceFailed, ReceiptRefused, ServiceRefused
    from sealgate.client.session import Session
    from sealgate.client.sources import read_source

    connection = read_connection(arguments)
    source = read_source(arguments)
    check_place("--receipt-out", arguments.receipt_out)
    check_place("--cose-out", arguments.cose_out)
    session = Session(
        connection.trust.strictly() if arguments.strict else connection.trust,
        purpose=arguments.purpose,
        token=connection.token,
        certificate=connection.certificate,
        dpop_key=connection.dpop_key,
        cose_receipts=arguments.cose_out is not None,
        proxy=connection.proxy,
        timeout=connection.timeout_s,
    )
    with session:
        try:
            metadata = session.metadata(arguments.model, version=arguments.version)
            result = session.infer(arguments.model, source.inputs(metadata), version=arguments.version)
        except (ServiceRefused, InferenceFailed) as refused:
            refused.args = (source.in_files(str(refused)),)
            say_recorded(refused)
            keep_receipt(arguments.receipt_out, refused.receipt_bytes)
            _keep_cose(arguments.cose_out, refused)
            raise
        except (EvidenceRefused, ReceiptRefused) as refused:
            _explain_refusal(arguments, refused)
            raise
    try:
        keep_receipt(arguments.receipt_out, result.receipt_bytes)
        _keep_cose(arguments.cose_out, result)
    finally:  # the answer is paid for: a receipt that cannot be kept does not cost it
        _print(arguments, metadata, result)
    return 0


def check_place(option: str, path: Path | None) -> None:
    """Before anything is asked, because asking costs budget."""
    from sealgate.client.errors import UsageError

    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise UsageError(f"{option} {path}: name a file in a folder that exists")


def keep_receipt(path: Path | None, receipt: bytes) -> None:
    """Write it where it is wanted."""
    from sealgate.client.results import save_receipt

    if path is not None and receipt:
        save_receipt(path, receipt)


def _keep_cose(path: Path | None, answered: Any) -> None:
    """The COSE Receipt of an answer or a refusal, and beside it the leaf that it is about."""
    import sys

    if path is None or answered.receipt is None:
        return
    if not answered.cose_receipt:
        print(f"{path}: the service gave no COSE receipt; --receipt-out keeps what it gave", file=sys.stderr)
        return
    keep_receipt(path, answered.cose_receipt)
    keep_receipt(path.with_name(path.name + ".leaf"), answered.receipt.leaf)


def say_recorded(refused: Any) -> None:
    """Where a refusal is on record."""
    import sys

    from sealgate.terminal import printable

    if refused.receipt is not None:
        record = refused.receipt.record
        line = f"on record: {record.kind} {record.reason}, {record.log} {refused.receipt.index}"
        print(printable(line), file=sys.stderr)


def _explain_refusal(arguments: argparse.Namespace, refused: Any) -> None:
    import sys

    from sealgate.client.explain import explain_checks

    if arguments.explain:
        print(explain_checks(refused.transcript), file=sys.stderr)


def _print(arguments: argparse.Namespace, metadata: ModelMetadata, result: InferResult) -> None:
    if arguments.json:
        import msgspec

        from sealgate.terminal import printable_json

        document = _document(result, explain=arguments.explain)
        print(printable_json(msgspec.json.format(msgspec.json.encode(document), indent=2).decode()))
        return
    from sealgate.client.explain import explain_answer

    print(_table(metadata, result))
    print()
    print(summary(result))
    if arguments.explain:
        print()
        print(explain_answer(result.answer))


def _document(result: InferResult, *, explain: bool) -> dict[str, object]:
    receipt, claims = result.receipt, result.evidence.claims
    import msgspec

    document: dict[str, object] = {
        "model": result.model_name,
        "version": result.model_version,
        "outputs": {name: _jsonable(values) for name, values in result.outputs.items()},
        "labels": result.labels,
        "receipt": {
            "log": receipt.record.log,
            "index": receipt.index,
            "record": receipt.record.id,
            "kind": receipt.record.kind,
            "time_us": receipt.record.ts_us,
            "tree_size": receipt.checkpoint.size,
        },
        "obligations": msgspec.to_builtins(result.obligations),
        "eps_micro": receipt.record.eps_micro,
        "evidence": {"grade": result.evidence.grade, "instance": claims.instance, "profile": claims.profile},
    }
    if explain:
        checks = {"evidence": result.evidence.transcript, "receipt": result.transcript}
        document["checks"] = checks
        document["grades"] = dict(result.evidence.grades)
    return document


def _jsonable(values: Any) -> Any:
    if isinstance(values, list):
        return [_jsonable(value) for value in values]
    return values.decode(errors="replace") if isinstance(values, bytes) else values


def _table(metadata: ModelMetadata, result: InferResult) -> str:
    """One line per row: the class name first, then every number that the model gave."""
    from sealgate.terminal import render_table

    headings: list[str] = ["row"]
    columns: list[list[Any]] = [list(range(1, _row_count(result) + 1))]
    if result.labels is not None:
        headings.append("label")
        columns.append(list(result.labels))
    for name, tensor in result.tensors.items():
        values, names = result.outputs[name], metadata.parameters.labels.get(name, ())
        if len(tensor.shape) == 1 and not (result.labels is not None and names):
            headings.append(name)
            columns.append(values)
        elif len(tensor.shape) == 2:
            width = tensor.shape[1]
            headings += [f"{name}: {names[at]}" if at < len(names) else f"{name} {at + 1}" for at in range(width)]
            columns += [[row[at] for row in values] for at in range(width)]
    return render_table(headings, zip(*columns, strict=True))


def _row_count(result: InferResult) -> int:
    return max((tensor.shape[0] for tensor in result.tensors.values() if tensor.shape), default=0)


def summary(result: InferResult) -> str:
    """What was asked, what the policy had done to it, and what of it was verified."""
    from sealgate.terminal import render_pairs

    record = result.receipt.record
    facts = result.evidence.model(record.model, certificate_digest=record.certificate_digest)
    skipped = sum(check.outcome == "skipped" for check in result.evidence.transcript)
    unchecked = (
        f", {skipped} {'check' if skipped == 1 else 'checks'} had nothing to compare with (--explain)"
        if skipped
        else ""
    )
    return render_pairs(
        [
            ("model", f"{result.model_name} {result.model_version}"),
            (
                "privacy",
                f"epsilon {facts.epsilon_micro / 1e6:g} per {facts.privacy_unit}, delta {facts.delta}, as certified",
            ),
            *_done(result),
            ("receipt", f"verified: record {result.receipt.index} of {result.receipt.record.log}"),
            ("evidence", f"verified: {result.evidence.grade}, profile {result.evidence.claims.profile}{unchecked}"),
        ]
    )


def _done(result: InferResult) -> list[tuple[str, str]]:
    """What the policy had done to the answer, in plain words."""
    from sealgate.protocol.obligations import epsilon_text

    done, lines = result.obligations, []
    reduced = [
        text
        for holds, text in (
            (done.hide_scores, "labels only"),
            (done.top_k is not None, f"only the {done.top_k} largest scores"),
            (done.round_digits is not None, f"numbers rounded to {done.round_digits} decimal places"),
        )
        if holds
    ]
    if done.noise_epsilon_micro:
        spent = result.receipt.record.eps_micro
        each, total = epsilon_text(done.noise_epsilon_micro), epsilon_text(spent)
        lines.append(("noised", f"epsilon {each} a row, {total} spent; not the model's own answers"))
    if reduced:
        lines.append(("reduced", ", ".join(reduced)))
    duties = [
        text
        for holds, text in (
            (done.receipt_required, "valid with its receipt only"),
            (done.single_use, "opened and run in a process of its own"),
        )
        if holds
    ]
    return [*lines, ("obliged", "; ".join(duties))] if duties else lines


INFER = Command(
    summary="ask a model about rows, sealed, and verify the answer's receipt",
    description="Seals the rows for the attested runtime, sends them through the gateway, verifies the audit receipt "
    "and prints the opened answer. Nothing is printed unless evidence, receipt and seal hold.",
    configure=_configure,
    run=_run,
)
