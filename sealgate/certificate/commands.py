"""The command `sealgate models`: look at bundles, report on them, encrypt them. Light: work is imported when run.

What needs to run a model is above this package, which never imports upwards: such actions are found by entry points
(`sealgate.models`), each a Command like those of `sealgate` itself.
"""

from __future__ import annotations

import argparse
from importlib.metadata import entry_points
from pathlib import Path

from sealgate.command import Command

_ORIGINAL = "the bundle that this one was compressed from: its weights are compressed again, and must be the same"
_PIPELINE = "sign several bundles together as one model: who reads whom, and what that costs together"
_SIGNING_KEY = "elliptic-curve private key: openssl ecparam -name prime256v1 -genkey -noout -out FILE.pem"
_NEW_KEY = "32 random bytes in a new file. Whoever has it can open the models that were encrypted under it."


def _configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text in (
        ("list", "one line per bundle under DIR (a models directory or a state directory)"),
        ("show", "what a bundle says about its model and its training, after verification"),
        ("verify", "check a bundle and recompute its epsilon, one line per step"),
        ("report", "one HTML page about a verified bundle, for people who decide; browsers print it as PDF"),
        ("encrypt", "encrypt a bundle's weights, in place; its signatures stay"),
        ("decrypt", "write an encrypted bundle's weights in plain again"),
        ("sign", "add model.sig, the signature of OpenSSF model signing, to a bundle"),
        ("rewrap", "put an encrypted bundle under another key, without encrypting its weights anew"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("directory", metavar="DIR", type=Path, help="a bundle, or for `list` what holds bundles")
        action.add_argument(
            "--publishers",
            metavar="FILE",
            type=Path,
            help="publishers.toml with the accepted keys (default: the nearest one above DIR)",
        )
        action.add_argument(
            "--key",
            metavar="SOURCE",
            action="append",
            default=[],
            help="key of encrypted weights: file:PATH, environment (SEALGATE_MODELS_KEY), or in a key service "
            "vault:FILE.toml, awskms:FILE.toml, gcpkms:FILE.toml or azurekv:FILE.toml; may be repeated",
        )
        if name == "verify":
            action.add_argument("--original", metavar="DIR", type=Path, help=_ORIGINAL)
        if name == "sign":
            action.add_argument("--signing-key", metavar="FILE.pem", type=Path, required=True, help=_SIGNING_KEY)
        if name == "rewrap":
            action.add_argument("--to", metavar="SOURCE", required=True, help="the key to wrap the data key under")
        if name == "report":
            action.add_argument("--out", metavar="FILE.html", type=Path, help="where it is written (NAME.html)")
            action.add_argument("--replace", action="store_true", help="replace a page that is there")
    new_key = actions.add_parser("new-key", help="draw a key that models are encrypted under", description=_NEW_KEY)
    new_key.add_argument("file", metavar="FILE", type=Path, help="where it is written, mode 0600")
    pipeline = actions.add_parser("pipeline", help=_PIPELINE, description=_PIPELINE)
    pipeline.add_argument("file", metavar="FILE.toml", type=Path, help="members, who reads whom, and what comes out")
    pipeline.add_argument("--out", metavar="DIR", type=Path, required=True, help="where the pipeline goes")
    pipeline.add_argument(
        "--publisher-key", metavar="FILE", type=Path, required=True, help="the key that signs the pipeline"
    )
    pipeline.add_argument("--publishers", metavar="FILE", type=Path, required=True, help="publishers.toml")
    pipeline.add_argument("--key", metavar="SOURCE", action="append", default=[], help="key of encrypted weights")
    pipeline.add_argument("--replace", action="store_true", help="replace a pipeline that is there")
    for point in sorted(entry_points(group="sealgate.models"), key=lambda one: one.name):
        command = point.load()
        if not isinstance(command, Command):
            raise TypeError(f"entry point {point.name} is not a Command")
        more = actions.add_parser(point.name, help=command.summary, description=command.description)
        command.configure(more)
        more.set_defaults(_models_action=command)


def _run(arguments: argparse.Namespace) -> int:
    from sealgate.certificate import report

    action: str = arguments.action
    found: Command | None = getattr(arguments, "_models_action", None)
    if found is not None:
        return found.run(arguments)
    if action == "pipeline":
        return _pipeline(arguments)
    if action in ("new-key", "encrypt", "decrypt", "rewrap", "sign"):
        return _protect(arguments)
    if action == "list":
        return report.list_bundles(arguments.directory, arguments.publishers, arguments.key)
    if action == "show":
        return report.show_bundle(arguments.directory, arguments.publishers, arguments.key)
    if action == "report":
        return report.write_report(
            arguments.directory, arguments.publishers, arguments.key, out=arguments.out, replace=arguments.replace
        )
    return report.verify_aloud(arguments.directory, arguments.publishers, arguments.key, original=arguments.original)


def _pipeline(arguments: argparse.Namespace) -> int:
    from sealgate.certificate.pipeline_report import make
    from sealgate.certificate.publishers import load_publishers

    return make(
        arguments.file,
        arguments.out,
        load_publishers(arguments.publishers),
        arguments.key,
        publisher_key=arguments.publisher_key,
        replace=arguments.replace,
    )


def _protect(arguments: argparse.Namespace) -> int:
    from sealgate.certificate import encryption_commands, report

    if arguments.action == "new-key":
        return encryption_commands.new_key(arguments.file)
    directory: Path = arguments.directory
    publishers = report.find_publishers(directory, arguments.publishers)
    if arguments.action == "encrypt":
        return encryption_commands.encrypt(directory, publishers, arguments.key)
    if arguments.action == "decrypt":
        return encryption_commands.decrypt(directory, publishers, arguments.key)
    if arguments.action == "sign":
        return encryption_commands.sign(directory, publishers, arguments.signing_key)
    return encryption_commands.rewrap(directory, publishers, arguments.key, to=arguments.to)


MODELS = Command(
    summary="list, show, verify, report on and encrypt model bundles",
    description=(
        "Model bundles carry weights, a manifest and a signed privacy certificate. Verification recomputes epsilon "
        "from the stated mechanism and refuses a bundle that claims less than its mechanism gives."
    ),
    configure=_configure,
    run=_run,
    extra="certificate",
)
