"""`sealgate explain`: what each column, word or pixel of a row did for a model's output, through a sealed session.

Never: prints anything unless evidence, receipt and seal hold.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sealgate.command import Command

if TYPE_CHECKING:
    from sealgate.client.attributions import Explanation
    from sealgate.client.metadata import ModelMetadata
    from sealgate.client.sources import Source


def _configure(parser: argparse.ArgumentParser) -> None:
    from sealgate.client.arguments import add_connection
    from sealgate.client.sources import add_source

    parser.add_argument("--model", required=True, metavar="NAME", help="the model to ask")
    parser.add_argument("--version", metavar="V", help="a certain version of it")
    parser.add_argument("--purpose", required=True, metavar="P", help="what you ask for; the policy decides by it")
    add_source(parser)
    parser.add_argument("--method", metavar="M", help="one of those that the model has; the first if left out")
    parser.add_argument(
        "--target", metavar="CLASS", help="which class to explain: its name or index; left out: the answer"
    )
    parser.add_argument("--heat-map", type=Path, metavar="PNG", help="of images: where the model looked, as a picture")
    parser.add_argument("--receipt-out", type=Path, metavar="FILE", help="keep the audit receipt")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    add_connection(parser)


def _run(arguments: argparse.Namespace) -> int:
    from sealgate.client.arguments import read_connection
    from sealgate.client.commands import check_place, keep_receipt, say_recorded
    from sealgate.client.errors import InferenceFailed, ServiceRefused, UsageError
    from sealgate.client.session import Session
    from sealgate.client.sources import read_source

    connection = read_connection(arguments)
    source = read_source(arguments)
    check_place("--receipt-out", arguments.receipt_out)
    check_place("--heat-map", arguments.heat_map)
    session = Session(
        connection.trust,
        purpose=arguments.purpose,
        token=connection.token,
        certificate=connection.certificate,
        dpop_key=connection.dpop_key,
        proxy=connection.proxy,
        timeout=connection.timeout_s,
    )
    with session:
        try:
            metadata = session.metadata(arguments.model, version=arguments.version)
            if arguments.heat_map is not None and "image" not in metadata.parameters.contents.values():
                raise UsageError("--heat-map is for models over images")  # before anything is paid for
            found = session.explain(
                arguments.model,
                source.inputs(metadata),
                version=arguments.version,
                method=arguments.method,
                target=_target(arguments.target),
            )
        except (ServiceRefused, InferenceFailed) as refused:
            refused.args = (source.in_files(str(refused)),)
            say_recorded(refused)
            keep_receipt(arguments.receipt_out, refused.receipt_bytes)
            raise
    try:
        keep_receipt(arguments.receipt_out, found.result.receipt_bytes)
        _draw(arguments.heat_map, found, metadata)
    finally:  # the answer is paid for
        _print(arguments, found, metadata, source)
    return 0


def _target(given: str | None) -> str | int | None:
    return int(given) if given is not None and given.isascii() and given.isdigit() else given


def _draw(path: Path | None, found: Explanation, metadata: ModelMetadata) -> None:
    """One picture for each row: PATH for one, PATH-1.png, PATH-2.png and so on for several."""
    from sealgate.client.attributions import heat_map
    from sealgate.client.errors import UsageError
    from sealgate.errors import ConfigurationError

    if path is None:
        return
    images = [name for name, kind in metadata.parameters.contents.items() if kind == "image"]
    if not images or images[0] not in found.attributions:
        raise UsageError("--heat-map is for models over images")
    rows = found.attributions[images[0]]
    for number, values in enumerate(rows, start=1):
        place = path if len(rows) == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            place.write_bytes(heat_map(values))
        except OSError as error:
            raise ConfigurationError(f"{place} cannot be written: {error.strerror}") from error


def _print(arguments: argparse.Namespace, found: Explanation, metadata: ModelMetadata, source: Source) -> None:
    import sys

    from sealgate.client.attributions import shown
    from sealgate.client.commands import summary

    if arguments.json:
        import msgspec

        from sealgate.terminal import printable_json

        text = msgspec.json.format(msgspec.json.encode(_document(found)), indent=2).decode()
        print(printable_json(text))
        return
    for row in range(len(found.output)):
        text_of_row = source.texts[row] if source.texts else None
        print(shown(found, metadata, row, text=text_of_row, colours=sys.stdout.isatty()))
        print()
    print(summary(found.result))


def _document(found: Explanation) -> dict[str, object]:
    receipt = found.result.receipt
    return {
        "model": found.result.model_name,
        "version": found.result.model_version,
        "method": found.method,
        "evaluations": found.evaluations,
        "seed": found.seed,
        "attributions": dict(found.attributions),
        "spans": dict(found.spans),
        "output": found.output,
        "baseline": found.baseline,
        "targets": found.targets,
        "labels": found.labels,
        "receipt": {"log": receipt.record.log, "index": receipt.index, "record": receipt.record.id},
        "units": receipt.record.units,
    }


EXPLAIN = Command(
    summary="ask what each part of a row did for a model's output, sealed",
    description="Seals the rows for the attested runtime and asks for attributions instead of answers. Needs a policy "
    "that permits explanations; costs the model's price of them. Nothing is printed unless evidence, receipt and seal "
    "hold.",
    configure=_configure,
    run=_run,
)
