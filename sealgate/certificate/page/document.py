"""The whole page of a verified bundle, and the file that it becomes: one, with everything in it.

Its content security policy forbids scripts and fetching altogether, so that the page cannot tell anybody that it was
read. Trusts: a verified bundle. Never: writes over a file unless told to.
"""

from __future__ import annotations

import os
import tempfile
from base64 import b64encode
from hashlib import sha256
from importlib import resources
from pathlib import Path

from sealgate.certificate.bundle import VerifiedBundle
from sealgate.certificate.page import sections
from sealgate.certificate.page.facts import facts_of
from sealgate.certificate.page.markup import Markup, element
from sealgate.errors import ConfigurationError

HTML = ".html"


def page_of(bundle: VerifiedBundle) -> str:
    """The HTML text; takes a few seconds, because every figure is computed anew."""
    facts, certificate = facts_of(bundle), bundle.certificate
    style = resources.files("sealgate.certificate.page").joinpath("page.css").read_text(encoding="utf-8")
    digest = b64encode(sha256(style.encode()).digest()).decode()
    name = f"{bundle.manifest.name} {bundle.manifest.version}"
    page = element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element(
                "meta", http_equiv="Content-Security-Policy", content=f"default-src 'none'; style-src 'sha256-{digest}'"
            ),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="referrer", content="no-referrer"),
            element("title", f"{name}: private training, certified"),
            element("style", Markup(style)),
        ),
        element(
            "body",
            sections.head(bundle),
            element(
                "main",
                sections.plain_words(bundle, facts),
                sections.accuracy(certificate),
                sections.over_steps(certificate, facts),
                sections.attacks(certificate, facts),
                sections.audit(certificate),
                sections.making(bundle),
                sections.limits(certificate),
                sections.recomputation(bundle, facts),
            ),
            element(
                "footer",
                element("p", "This page is a reading aid. What counts is the signed bundle that it was made from."),
            ),
        ),
        lang="en",
    )
    return f"<!doctype html>\n{page}\n"


def write_page(bundle: VerifiedBundle, path: Path, *, replace: bool) -> None:
    """Write the page, all or nothing; raises ConfigurationError."""
    require_page_path(path, replace=replace)
    content = page_of(bundle).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            os.chmod(temporary, 0o644)  # what it shows is public in the bundle
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error


def require_page_path(path: Path, *, replace: bool) -> None:
    """Raise ConfigurationError unless a page may be written there. Asked before training, too."""
    if path.suffix != HTML:
        raise ConfigurationError(
            f"{path} should end in {HTML}: the report is a page for browsers, which print it as PDF"
        )
    if os.path.lexists(path) and not replace:
        raise ConfigurationError(f"{path} exists; name another file, or say --replace")
