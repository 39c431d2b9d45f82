"""An explanation as a program gets it, and as people read it: tables, marked texts, pictures of where a model looked.

Trusts: answers that a sealed transport opened. Never: says that an explanation shows a cause: it says what the model's
output moved by, on the model's own scale, against its public baseline.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sealgate.client.errors import UsageError
from sealgate.client.metadata import ModelMetadata
from sealgate.client.results import InferResult
from sealgate.terminal import printable, render_table

_ATTRIBUTION, _SPANS = "attribution.", "spans."
_MOST_ROWS = 24  # of one table
_SHADES = " .:-=+*#%@"
_SCALE = 8  # pixels of a heat map for one of the model's, up to _LARGEST on a side
_LARGEST = 1024
_RED, _BLUE, _PLAIN = "\x1b[41;97m", "\x1b[44;97m", "\x1b[0m"
_FAINT = 0.2  # of the strongest: weaker parts of a text are not marked


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """An opened explanation. `attributions` by input name: nested lists of the input's shape, for texts and tokens one
    number a token; `spans` where in a text each token stands. For each row attributions add up, by most methods, to
    `output` minus `baseline`. `targets` are class indices, `labels` their names where the metadata were read.
    `evaluations` is how often the model was run for a row, at most, and `seed` what a method's orders were drawn from;
    None where the runtime does not say."""

    method: str
    evaluations: int | None
    seed: int | None
    attributions: Mapping[str, list[Any]] = field(repr=False)
    spans: Mapping[str, list[Any]] = field(repr=False)
    output: tuple[float, ...] = field(repr=False)
    baseline: tuple[float, ...] = field(repr=False)
    targets: tuple[int, ...] = field(repr=False)
    labels: tuple[str, ...] | None = field(repr=False)
    result: InferResult = field(repr=False)  # the whole answer, with its receipt and evidence


def read_explanation(result: InferResult, metadata: ModelMetadata | None) -> Explanation:
    """The explanation in an answer to `explain`; raises UsageError for one that has not all of it."""
    outputs = result.outputs
    if not {"output", "baseline", "target"} <= outputs.keys():
        raise UsageError("the answer is not a whole explanation; ask for all outputs")
    names = next(iter(metadata.parameters.labels.values()), ()) if metadata else ()
    targets = tuple(int(one) for one in outputs["target"])
    labelled = bool(names) and all(0 <= one < len(names) for one in targets)
    return Explanation(
        method=str(result.parameters.get("method", "")),
        evaluations=_whole(result.parameters.get("evaluations")),
        seed=_whole(result.parameters.get("seed")),
        attributions=dict(_named(outputs, _ATTRIBUTION)),
        spans=dict(_named(outputs, _SPANS)),
        output=tuple(outputs["output"]),
        baseline=tuple(outputs["baseline"]),
        targets=targets,
        labels=tuple(names[one] for one in targets) if labelled else None,
        result=result,
    )


def _whole(value: object) -> int | None:
    return value if type(value) is int else None


def _named(outputs: Mapping[str, list[Any]], prefix: str) -> Iterator[tuple[str, list[Any]]]:
    return ((name.removeprefix(prefix), values) for name, values in outputs.items() if name.startswith(prefix))


def shown(
    explanation: Explanation, metadata: ModelMetadata, row: int, *, text: str | None = None, colours: bool = False
) -> str:
    """One row's explanation for a terminal. `text` is what the row's text input was."""
    parts = [_headline(explanation, row)]
    for name, values in explanation.attributions.items():
        if len(explanation.attributions) > 1:
            parts.append(f"{printable(name)}:")
        kind = metadata.parameters.contents.get(name, "")
        if kind == "text" and text is not None and name in explanation.spans:
            parts.append(marked_text(text, explanation.spans[name][row], values[row], colours=colours))
        elif kind == "image":
            parts.append(picture(values[row]))
        else:
            parts.append(_table(_places(name, kind, values[row], metadata)))
    return "\n\n".join(parts)


def _headline(explanation: Explanation, row: int) -> str:
    of = f" for {printable(explanation.labels[row])}" if explanation.labels is not None else ""
    output, baseline = explanation.output[row], explanation.baseline[row]
    return f"row {row + 1}{of}: {output:.6g}, at the baseline {baseline:.6g}; by {_how(explanation)}"


def _how(explanation: Explanation) -> str:
    """The method, and what it took."""
    took = [f"seed {explanation.seed}"] if explanation.seed is not None else []
    if explanation.evaluations is not None:
        took.append(f"at most {explanation.evaluations:,} evaluations of the model")
    return printable(explanation.method) + (f" ({', '.join(took)})" if took else "")


def _table(places: list[tuple[str, float]]) -> str:
    """The strongest first, and what all others come to."""
    ranked = sorted(places, key=lambda one: -abs(one[1]))
    strongest = max((abs(value) for _, value in ranked), default=0.0) or 1.0
    lines = [(name, f"{value:+.6g}", _bar(value / strongest)) for name, value in ranked[:_MOST_ROWS]]
    if len(ranked) > _MOST_ROWS:
        rest = sum(value for _, value in ranked[_MOST_ROWS:])
        lines.append((f"{len(ranked) - _MOST_ROWS} others together", f"{rest:+.6g}", ""))
    return render_table(("what", "attribution", ""), lines)


def _bar(share: float, width: int = 12) -> str:
    filled = round(abs(share) * width)
    return "+" * filled if share > 0 else "-" * filled


def _places(name: str, kind: str, values: Any, metadata: ModelMetadata) -> list[tuple[str, float]]:
    """What each number of an attribution belongs to, in words."""
    columns = metadata.columns_of(name)
    match kind:
        case "table":
            return [(_column(columns, at), value) for at, value in enumerate(values)]
        case "sequence":
            return [
                (f"step {step + 1}, {_column(columns, at)}", value)
                for step, row in enumerate(values)
                for at, value in enumerate(row)
            ]
        case "graph-nodes":
            return [
                (f"node {node + 1}, {_column(columns, at)}", value)
                for node, row in enumerate(values)
                for at, value in enumerate(row)
            ]
        case "graph-edges":
            both = [(a, b) for a in range(len(values)) for b in range(a + 1)]
            ties = [(a, b, values[a][b] + (values[b][a] if a != b else 0.0)) for a, b in both]
            return [(f"tie of {b + 1} and {a + 1}", value) for a, b, value in ties if value]
        case _:
            return [(f"{name} {at + 1}", value) for at, value in enumerate(_flat(values))]


def _column(columns: Sequence[str], at: int) -> str:
    return columns[at] if at < len(columns) else f"column {at + 1}"


def _flat(values: Any) -> list[float]:
    return [one for part in values for one in _flat(part)] if isinstance(values, list) else [values]


# Texts ---------------------------------------------------------------------------------------------------------------


def marked_text(text: str, spans: Sequence[Sequence[int]], values: Sequence[float], *, colours: bool = False) -> str:
    """The text with what counted for the class in `[+ ]` and against it in `[- ]`, or in red and blue.

    Pieces of one word count together.
    """
    found: dict[tuple[int, int], float] = {}
    for (start, end), value in zip(spans, values, strict=True):
        if 0 <= start < end <= len(text):
            found[start, end] = found.get((start, end), 0.0) + value
    strongest = max(map(abs, found.values()), default=0.0) or 1.0
    parts, at = [], 0
    for (start, end), value in sorted(found.items()):
        if start < at or abs(value) < _FAINT * strongest:
            continue
        word = printable(text[start:end])
        sign, colour = ("+", _RED) if value > 0 else ("-", _BLUE)
        parts += [printable(text[at:start]), f"{colour}{word}{_PLAIN}" if colours else f"[{sign} {word}]"]
        at = end
    return "".join([*parts, printable(text[at:])])


# Pictures ------------------------------------------------------------------------------------------------------------


def _plane(values: Any) -> list[list[float]]:
    """[channels, height, width] -> [height, width], the channels added up."""
    return [[sum(pixel) for pixel in zip(*rows, strict=True)] for rows in zip(*values, strict=True)]


def picture(values: Any) -> str:
    """Where the model looked, for a terminal: the darker, the more. For and against the class are not told apart."""
    plane = _plane(values)
    strongest = max((abs(one) for row in plane for one in row), default=0.0) or 1.0
    step = max(1, -(-max(len(plane), len(plane[0])) // 56))
    lines = []
    for row in plane[::step]:
        levels = (round(abs(one) / strongest * (len(_SHADES) - 1)) for one in row[::step])
        lines.append("".join(_SHADES[level] * 2 for level in levels).rstrip())
    return "\n".join(lines)


def heat_map(values: Any) -> bytes:
    """A PNG: red for what counted for the class, blue for what counted against it, white for neither."""
    plane = _plane(values)
    scale = max(1, min(_SCALE, _LARGEST // max(len(plane), len(plane[0]))))
    strongest = max((abs(one) for row in plane for one in row), default=0.0) or 1.0
    lines = []
    for row in plane:
        pixels = b"".join(_colour(one / strongest) * scale for one in row)
        lines.append((b"\0" + pixels) * scale)
    header = struct.pack(">IIBBBBB", len(plane[0]) * scale, len(plane) * scale, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(lines))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _colour(share: float) -> bytes:
    weak = 255 - round(255 * abs(share))
    return bytes((255, weak, weak)) if share > 0 else bytes((weak, weak, 255))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
