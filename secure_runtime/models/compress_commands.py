"""`sealgate models compress`: fewer bits for a bundle's weights, and the comparison as a table. Light until it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sealgate.command import Command

if TYPE_CHECKING:
    from secure_runtime.models.compress import Compressed

_KEY = "key of encrypted weights: file:PATH, or environment (SEALGATE_MODELS_KEY); the new ones are wrapped under it"


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", type=Path, help="the bundle to compress; it stays as it is")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument(
        "--int8", dest="kind", action="store_const", const="int8", help="a quarter of the size; whole-number layers"
    )
    kind.add_argument("--bf16", dest="kind", action="store_const", const="bf16", help="half of the size")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="where the compressed bundle goes")
    parser.add_argument(
        "--publisher-key", metavar="FILE", type=Path, required=True, help="the key that signed the original"
    )
    parser.add_argument("--publishers", metavar="FILE", type=Path, help="publishers.toml (default: above DIR)")
    parser.add_argument("--key", metavar="SOURCE", action="append", default=[], help=_KEY)
    parser.add_argument(
        "--test",
        metavar="FILE.csv",
        type=Path,
        help="held-out rows with their truth, as `sealgate train --heldout-csv` writes them: never training rows",
    )
    parser.add_argument(
        "--max-loss", metavar="SHARE", help="refuse to write a model that loses more accuracy (or R2) than this: 0.01"
    )
    parser.add_argument("--name", default="", help="name of the compressed model (the original's)")
    parser.add_argument("--version", default="", help="its version (the original's, with +int8 or +bf16 behind it)")
    parser.add_argument(
        "--arithmetic",
        choices=("float64", "float32"),
        default="",
        help="of what is not whole numbers (the original's): float32 is faster, and leaves the last digit open",
    )
    parser.add_argument("--replace", action="store_true", help="replace a bundle that is there")


def _run(arguments: argparse.Namespace) -> int:
    from sealgate.certificate.decimals import parse_decimal
    from sealgate.certificate.opening import whole
    from sealgate.certificate.publishing import load_signing_key
    from sealgate.certificate.report import find_publishers
    from sealgate.certificate.wrapping_keys import open_key
    from sealgate.errors import ConfigurationError, DecodeError
    from secure_runtime.models.compress import Asked, compress_bundle

    try:
        max_loss = None if arguments.max_loss is None else parse_decimal(arguments.max_loss)
    except DecodeError as error:
        raise ConfigurationError("--max-loss is a share as a decimal number, as 0.01") from error
    directory: Path = arguments.directory
    publishers = find_publishers(directory, arguments.publishers)
    original = whole(directory, publishers, arguments.key)
    if original.locked_under and len(arguments.key) != 1:
        raise ConfigurationError("the weights are encrypted: name their key with --key, once")
    asked = Asked(
        kind=arguments.kind,
        out=arguments.out,
        name=arguments.name,
        version=arguments.version,
        arithmetic=arguments.arithmetic,
        test=arguments.test,
        max_loss=max_loss,
        replace=arguments.replace,
        wrapping=open_key(arguments.key[0]) if original.locked_under else None,
    )
    made = compress_bundle(original, asked, key=load_signing_key(arguments.publisher_key), publishers=publishers)
    _tell(made)
    return 0


def _tell(made: Compressed) -> None:
    from sealgate.certificate.decimals import micro_text
    from sealgate.terminal import printable, render_table

    comparison, facts = made.comparison, made.bundle.facts
    rows = []
    for name, side, size in (
        ("original", comparison.before, made.bytes_before),
        ("compressed", comparison.after, made.bytes_after),
    ):
        times = [f"{timed.p50_us:.0f} / {timed.p99_us:.0f}" for timed in side.timed.values()]
        quality = "" if side.quality is None else f"{side.quality.value:.4f}"
        rows.append((name, quality or "not measured", str(size), *times))
    measure = comparison.after.quality.measure if comparison.after.quality is not None else "quality"
    latencies = [f"us, {count} row{'s' if count > 1 else ''} (p50 / p99)" for count in comparison.after.timed]
    print(render_table(("", measure, "bytes", *latencies), rows))
    on = f"{comparison.rows} {'made-up rows' if comparison.made_up else 'rows'}"
    print(f"same labels on {comparison.alike:.2%} of {on}; largest difference {comparison.furthest:.3g}")
    epsilon = micro_text(facts.epsilon_micro)
    print(printable(f"{made.bundle.directory}: {facts.name} {facts.version}, verified, epsilon {epsilon}"))
    print("the certificate is the original's, carried over; model.sig, if there was one, is not: sealgate models sign")


COMPRESS = Command(
    summary="write a bundle's model again in fewer bits, with its certificate carried over",
    description=(
        "Weights in int8 or bfloat16, made from the original's weights alone: post-processing, so epsilon stays. Shows "
        "accuracy, size and latency of both models, and signs the new one with the publisher's key."
    ),
    configure=_configure,
    run=_run,
    extra="server",
)
