"""The command `sealgate train`. Light: torch and its friends are imported when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from sealgate.command import Command
from sealgate.terminal import printable


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG.toml", type=Path, help="what to train, on what, at which privacy")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("models"), help="the bundle is written to DIR/NAME (models)"
    )
    parser.add_argument(
        "--key",
        metavar="PUBLISHER.key",
        type=Path,
        default=Path("publisher.key"),
        help="Ed25519 key that signs the bundle; `sealgate init DIR` makes one in DIR (publisher.key)",
    )
    parser.add_argument("--heldout-csv", metavar="FILE", type=Path, help="write the held-out rows here, mode 0600")
    parser.add_argument(
        "--commitment-key",
        metavar="FILE",
        type=Path,
        help="keep the key that can later show which rows were trained on, mode 0600 (otherwise it is thrown away)",
    )
    parser.add_argument("--replace", action="store_true", help="replace a bundle of the same name, and files")
    parser.add_argument(
        "--no-audit",
        action="store_true",
        help="sign without attacking the trainer first; the certificate says so, and runtimes may refuse the bundle",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with a run that was cut off, from its checkpoint ([engine] checkpoint_every)",
    )
    parser.add_argument(
        "--audit-only",
        action="store_true",
        help="attack the trainer with this configuration's constants and say what was found; trains and signs nothing",
    )
    parser.add_argument(
        "--encrypt",
        metavar="SOURCE",
        help="encrypt the weights under this key: file:PATH, or environment (`sealgate models new-key` makes one)",
    )
    parser.add_argument(
        "--model-signing-key",
        metavar="FILE.pem",
        type=Path,
        help="write model.sig too, the signature of OpenSSF model signing, with this elliptic-curve key",
    )
    parser.add_argument("--threads", metavar="N", type=int, default=1, help="threads for arithmetic (1)")


def _run(arguments: argparse.Namespace) -> int:
    if arguments.audit_only:
        return _audit_only(arguments)
    from sealgate.certificate.model_signature import load_model_signing_key
    from sealgate.certificate.wrapping_keys import open_key
    from training.owner import Owner
    from training.publish import load_signing_key

    key, signing_file = load_signing_key(arguments.key), arguments.model_signing_key

    import torch

    from training.experiment import run_experiment
    from training.memory import keep_freed_memory
    from training.report import Terminal, UnreadConsole

    keep_freed_memory()
    torch.set_num_threads(max(1, arguments.threads))
    run_experiment(
        arguments.config,
        models_dir=arguments.out,
        key=key,
        heldout_csv=arguments.heldout_csv,
        commitment_key=arguments.commitment_key,
        protected=(arguments.key,),
        replace=arguments.replace,
        audit=not arguments.no_audit,
        resume=arguments.resume,
        owner=Owner(
            wrapping=None if arguments.encrypt is None else open_key(arguments.encrypt),
            model_signing=None if signing_file is None else load_model_signing_key(signing_file),
        ),
        narrator=Terminal(UnreadConsole()),
    )
    return 0


def _audit_only(arguments: argparse.Namespace) -> int:
    import torch

    from training.audit_only import audit_only
    from training.memory import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(max(1, arguments.threads))
    audit_only(arguments.config, say=lambda line: print(printable(line), flush=True))
    return 0


TRAIN = Command(
    summary="train a model with differential privacy and publish a signed bundle",
    description=(
        "Trains a logistic regression, linear regression or MLP with DP-SGD on rows from CSV, Parquet, NPZ or a "
        "scikit-learn data set, and writes a signed bundle: weights, manifest, privacy certificate, card. BatchNorm "
        "and compiled models are not offered: their per-example gradients do not exist or cannot be taken."
    ),
    configure=_configure,
    run=_run,
    extra="training",
)
