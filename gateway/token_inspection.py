"""What is behind `sealgate token inspect`: the gateway's own verifier, asked about one token.

Trusts: the deployment's files. Never: prints the token or its signature, or says "accepted" by other rules than the
gateway's own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gateway.authentication.issuers import load_issuers
from gateway.authentication.key_sets import KeySets
from gateway.authentication.revocations import FILE as REVOKED_FILE
from gateway.authentication.revocations import Revocations
from gateway.authentication.tokens import TokenVerifier, VerifiedToken, parse_unverified
from gateway.errors import AUTHENTICATION_FAILURES, Unauthenticated
from gateway.limits import MAX_TOKEN
from sealgate.client.arguments import TOKEN_VARIABLE
from sealgate.client.times import utc_text
from sealgate.deployment import Deployment, open_deployment
from sealgate.errors import ConfigurationError
from sealgate.terminal import printable_json, render_pairs


def inspect(arguments: argparse.Namespace) -> int:
    """0 if the gateway would take the token now."""
    deployment = open_deployment(arguments.state)
    text = _token(arguments.token_file)
    try:
        header, payload = parse_unverified(text)
        verified, reason = asyncio.run(_judge(deployment, text))
    except Unauthenticated as error:
        header, payload, verified, reason = {}, {}, None, error.code
    if arguments.json:
        document = {
            "accepted": verified is not None,
            "reason": reason,
            "header": header,
            "claims": payload,
            "understood": _understood(verified) if verified else None,
        }
        print(printable_json(json.dumps(document, indent=2)))
    else:
        print(render_pairs(_lines(header, payload, verified, reason)))
    return 0 if verified is not None else 1


def _understood(verified: VerifiedToken) -> dict[str, Any]:
    return {name: value for name, value in asdict(verified).items() if name != "principals"}


def _token(path: Path | None) -> str:
    if path is None:
        text = os.environ.get(TOKEN_VARIABLE, "")
        if not text:
            raise ConfigurationError(f"no token: name a file with --token-file, or set {TOKEN_VARIABLE}")
        return text.strip()
    try:
        with path.open("rb") as file:
            return file.read(MAX_TOKEN + 2).decode("latin-1").strip()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error


async def _judge(deployment: Deployment, text: str) -> tuple[VerifiedToken | None, str]:
    issuers = load_issuers(deployment.tokens)
    said: list[str] = []
    verifier = TokenVerifier(
        issuers,
        key_sets=KeySets(issuers, report=said.append),
        revocations=Revocations(deployment.tokens / REVOKED_FILE),
        audience=deployment.token_audience,
    )
    try:
        return await verifier.verify(text), ""
    except Unauthenticated as error:
        return None, "; ".join([error.code, *filter(None, [error.detail]), *said])
    finally:
        await verifier.close()


def _lines(
    header: dict[str, Any], payload: dict[str, Any], verified: VerifiedToken | None, reason: str
) -> list[tuple[str, object]]:
    code, _, detail = reason.partition("; ")
    lines: list[tuple[str, object]] = [("accepted", "yes")]
    if verified is None:
        lines = [("accepted", "no"), ("reason", code), ("", AUTHENTICATION_FAILURES[code])]
        lines += [("", detail)] if detail else []
    lines += [(name, _short(header[name])) for name in ("typ", "alg", "kid") if name in header]
    if verified is None:
        return lines + [(name, _short(value)) for name, value in payload.items()]
    bound = verified.confirmation
    return [
        *lines,
        ("issuer", verified.issuer),
        ("tenant", verified.tenant),
        ("subject", verified.subject),
        ("client", verified.client_id),
        ("roles", ", ".join(verified.roles) or "none"),
        ("purposes", ", ".join(verified.purposes) or "none"),
        ("jti", verified.jti),
        ("issued", utc_text(verified.iat * 1_000_000)),
        ("expires", utc_text(verified.expires_us)),
        ("bound to", "nothing" if bound is None else _bound(bound.x5t_s256, bound.jkt)),
    ]


def _bound(certificate: str | None, key: str | None) -> str:
    parts = [f"certificate {certificate}"] if certificate else []
    return " and ".join(parts + ([f"DPoP key {key}"] if key else []))


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
