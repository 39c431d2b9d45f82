"""Makes admissions.csv, which admissions.toml trains on: 8000 made-up admissions to a hospital. No person is in it.

    python examples/tabular/admissions.py examples/tabular/admissions.csv
    (umask 077; head -c 32 /dev/urandom > examples/tabular/masking.key)

Whether somebody is readmitted depends on age, days in hospital, the ward, and the season; a note is never used.
"""

from __future__ import annotations

import csv
import datetime
import math
import random
import sys
from pathlib import Path

ROWS = 8000
WARDS = {"surgery": (0.35, -0.3), "cardiology": (0.25, 0.9), "maternity": (0.2, -1.6), "geriatrics": (0.19, 0.7)}
NAMES = ("Ada Lovelace", "Emmy Noether", "Alan Turing", "Grace Hopper", "Kurt Goedel", "Sofia Kovalevskaya")
_FIRST = datetime.date(2020, 1, 1)


def admissions(generator: random.Random) -> list[dict[str, object]]:
    """Rows as a hospital would export them, one person to a row."""
    found: list[dict[str, object]] = []
    for number in range(ROWS):
        age = min(103.0, max(18.0, generator.gauss(58, 19)))
        stay = 1 + int(generator.expovariate(0.22))
        wards, weights = list(WARDS), [share for share, _ in WARDS.values()]
        # One ward in a hundred has a name of its own, which could tell who was there.
        ward = generator.choices([*wards, f"isolation {number}"], [*weights, 0.01])[0]
        day = _FIRST + datetime.timedelta(days=generator.randrange(2000))
        signal = (age - 58) / 16 + (stay - 5) / 3 + WARDS.get(ward, (0.0, 0.0))[1] * 1.5
        again = generator.random() < 1 / (1 + math.exp(-1.6 * signal))
        name = generator.choice(NAMES)
        phone = f"555-{generator.randrange(100, 1000)}-{number:04}"
        found.append(
            {
                "patient": f"{name} {number}",
                "age": round(age, 1),
                "days": stay,
                "ward": ward,
                "admitted": day.isoformat(),
                "postcode": f"{generator.randrange(100):02}{generator.randrange(1000):03}",
                "note": f"Call Mrs. {name} at {phone} or p{number}@example.org.",
                "readmitted": "yes" if again else "no",
            }
        )
    return found


def main() -> None:
    """Write the rows to the file that is named."""
    rows = admissions(random.Random(2026))  # noqa: S311 - made-up rows, the same each time
    with Path(sys.argv[1]).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
