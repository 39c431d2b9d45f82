"""Ask a model about the rows of a CSV file, keep the receipts, and say plainly why when it does not work.

    python examples/client.py TRUST MODEL PURPOSE ROWS.csv RECEIPTS < token

TRUST is the folder with trust.toml and ca.pem that the operator handed out; the token comes on standard input,
because other users of the machine can read a command line. Every answer printed here was opened only after the
runtime's evidence and the receipt of this very request had been verified.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from sealgate import EvidenceRefused, ReceiptRefused, SealgateError, ServiceRefused, Session

BATCH = 256  # rows in one request


def read_rows(path: Path, columns: tuple[str, ...]) -> list[list[float]]:
    """The model's columns of a CSV file with a header, in the model's order; other columns are left out."""
    with path.open(newline="") as file:
        return [[float(row[name]) for name in columns] for row in csv.DictReader(file)]


def ask(session: Session, model: str, rows: list[list[float]], receipts: Path) -> list[str]:
    """The label of every row. One receipt is kept for each request."""
    labels: list[str] = []
    for start in range(0, len(rows), BATCH):
        result = session.infer(model, rows[start : start + BATCH])
        result.save_receipt(receipts / f"{result.receipt.index}.receipt")
        labels += result.labels or ()
    return labels


def main(trust: str, model: str, purpose: str, source: str, kept: str) -> int:
    """Ask about every row; returns the exit code."""
    token = sys.stdin.readline().strip()
    receipts = Path(kept)
    receipts.mkdir(mode=0o700, exist_ok=True)
    with Session(trust, purpose=purpose, token=token) as session:
        try:
            evidence = session.evidence()
            print(f"assurance: {evidence.grade}, profile: {evidence.claims.profile}", file=sys.stderr)
            columns = session.metadata(model).parameters.columns
            for label in ask(session, model, read_rows(Path(source), columns), receipts):
                print(label)
        except (EvidenceRefused, ReceiptRefused) as refused:
            for check in refused.transcript:
                print(f"{check.outcome:8} {check.name}: {check.detail} ({check.anchor})", file=sys.stderr)
            print(f"do not trust this service: {refused}", file=sys.stderr)
            return 1
        except ServiceRefused as refused:
            record = f", on record as number {refused.receipt.index}" if refused.receipt else ""
            print(f"refused: {refused}{record}", file=sys.stderr)
            return 1
        except SealgateError as error:
            print(f"{error.code}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
