"""The command `sealgate train`. Light: torch and its friends are imported when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from sealgate.command import Command
from sealgate.errors import ConfigurationError
from sealgate.terminal import printable, say


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", metavar="CONFIG.toml", type=Path, nargs="?", help="what to train, on what, at which privacy"
    )
    parser.add_argument(
        "--example",
        metavar="NAME",
        help="write a complete configuration to begin from to CONFIG.toml (NAME.toml); `list` says which there are",
    )
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
        "--plan",
        action="store_true",
        help="say what noise, time and memory this configuration needs, and others near it; opens no data",
    )
    parser.add_argument(
        "--sweep",
        metavar="EPSILONS",
        help="train at these epsilons, too, as in 1,3,8, to compare accuracies; each run is one more release",
    )
    parser.add_argument("--repeats", metavar="N", type=int, default=1, help="runs at each epsilon of --sweep (1)")
    parser.add_argument(
        "--report",
        metavar="FILE.html",
        type=Path,
        help="write a page about the finished bundle (`sealgate models report`)",
    )
    parser.add_argument(
        "--encrypt",
        metavar="SOURCE",
        help="encrypt the weights under this key: file:PATH, or environment (`sealgate models new-key` makes one)",
    )
    parser.add_argument(
        "--fingerprint",
        metavar="FILE",
        type=Path,
        help="put this key's fingerprint into the model (`sealgate fingerprint new-key` makes one)",
    )
    parser.add_argument(
        "--model-signing-key",
        metavar="FILE.pem",
        type=Path,
        help="write model.sig too, the signature of OpenSSF model signing, with this elliptic-curve key",
    )
    parser.add_argument("--threads", metavar="N", type=int, default=1, help="threads for arithmetic (1)")
    parser.add_argument(
        "--processes",
        metavar="N",
        type=int,
        default=1,
        help="share the steps of dp-sgd among N processes of this machine, each with so many threads (1)",
    )
    parser.add_argument(
        "--shard",
        action="store_true",
        help="share the weights, too: each of the --processes holds its part of them and of the optimizer's state",
    )


def _run(arguments: argparse.Namespace) -> int:
    if arguments.example is not None:
        return _example(arguments.example, arguments.config)
    if arguments.config is None:
        raise ConfigurationError("name a CONFIG.toml; `sealgate train --example list` says what there is to begin from")
    if arguments.audit_only:
        return _audit_only(arguments)
    if arguments.plan:
        return _plan(arguments)
    from training.configuration import load_configuration

    load_configuration(arguments.config)  # what is wrong with it is said before anything is said of keys
    from sealgate.certificate.model_signature import load_model_signing_key
    from sealgate.certificate.page.document import require_page_path, write_page
    from sealgate.certificate.wrapping_keys import open_key, read_secret
    from training.owner import Owner
    from training.publish import load_signing_key

    if arguments.report is not None:
        require_page_path(arguments.report, replace=arguments.replace)
    key, signing_file = load_signing_key(arguments.key), arguments.model_signing_key

    import torch

    from training.experiment import run_experiment
    from training.memory import keep_freed_memory
    from training.report import Terminal, UnreadConsole
    from training.sweep import Sweep

    keep_freed_memory()
    torch.set_num_threads(max(1, arguments.threads))
    published = run_experiment(
        arguments.config,
        models_dir=arguments.out,
        key=key,
        heldout_csv=arguments.heldout_csv,
        commitment_key=arguments.commitment_key,
        protected=(arguments.key,),
        replace=arguments.replace,
        audit=not arguments.no_audit,
        resume=arguments.resume,
        processes=arguments.processes,
        sharded=arguments.shard,
        owner=Owner(
            wrapping=None if arguments.encrypt is None else open_key(arguments.encrypt),
            fingerprint=None if arguments.fingerprint is None else read_secret(arguments.fingerprint),
            model_signing=None if signing_file is None else load_model_signing_key(signing_file),
        ),
        sweep=Sweep.of(arguments.sweep, repeats=arguments.repeats) if arguments.sweep is not None else None,
        narrator=Terminal(UnreadConsole()),
    )
    if arguments.report is not None:
        write_page(published.bundle, arguments.report, replace=arguments.replace)
        say(f"  report      {printable(str(arguments.report))}")
    return 0


def _example(name: str, path: Path | None) -> int:
    from training.starters import starters, summary_of, write_starter

    if name == "list":
        for known, text in starters().items():
            say(f"{known:24} {printable(summary_of(text))}")
        return 0
    path = path or Path(f"{name}.toml")
    write_starter(name, path)
    say(f"{printable(str(path))}: change it to your rows; what it costs before you train: sealgate train {path} --plan")
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    import torch

    from training.forecast.told import forecast
    from training.memory import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(max(1, arguments.threads))
    forecast(arguments.config, say=lambda text: say("\n".join(map(printable, text.split("\n")))))
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
        "Trains a model on rows, images, sequences, texts or graphs with differential privacy, after an attack on the "
        "trainer itself, and writes a signed bundle: weights, manifest, certificate, card. BatchNorm and compiled "
        "models are not offered: their per-example gradients do not exist or cannot be taken."
    ),
    configure=_configure,
    run=_run,
    extra="training",
)
