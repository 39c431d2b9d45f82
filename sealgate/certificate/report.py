"""What `sealgate models` prints. Nothing is shown of a bundle that was not verified first, except why it was refused.

Trusts: publishers.toml. Never: prints names or texts from an unverified bundle beyond its directory name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sealgate.certificate.accounting.curves import curve_of
from sealgate.certificate.accounting.described import account_of
from sealgate.certificate.attack_words import attack_lines, unit_word
from sealgate.certificate.audits import audit_words
from sealgate.certificate.bundle import VerifiedBundle, VerifiedStatements, verify_bundle
from sealgate.certificate.decimals import micro_text
from sealgate.certificate.derivation import derivation_words, measured_words, require_compressed
from sealgate.certificate.measured import interval_text
from sealgate.certificate.mechanism_words import mechanism_lines
from sealgate.certificate.mechanisms import name_of
from sealgate.certificate.opening import as_far_as_possible, whole, words_about_weights
from sealgate.certificate.page.document import HTML, require_page_path, write_page
from sealgate.certificate.pipeline import MEMBERS, is_pipeline
from sealgate.certificate.pipeline_report import pipeline_line, show_pipeline, verify_pipeline_aloud
from sealgate.certificate.publishers import Publishers, load_publishers
from sealgate.certificate.recomputation import recomputation_lines
from sealgate.certificate.repository import Place, places_of
from sealgate.certificate.wrapping_keys import open_key_ring
from sealgate.deployment import open_deployment
from sealgate.errors import CertificateError, ConfigurationError, SealgateError
from sealgate.limits import MAX_BUNDLES
from sealgate.served_models import served_models, state_words
from sealgate.terminal import printable


def find_publishers(directory: Path, given: Path | None) -> Publishers:
    """From the file that was given, or the nearest `publishers.toml` in the three directories above the bundle."""
    if given is not None:
        return load_publishers(given)
    if not directory.is_dir():
        raise ConfigurationError(f"{directory} is not a folder; name a bundle, as STATE/models/NAME")
    start = directory.resolve()
    for candidate in (start, *list(start.parents)[:3]):
        path = candidate / "publishers.toml"
        if path.is_file():
            return load_publishers(path)
    raise ConfigurationError(f"no publishers.toml near {directory}; name one with --publishers FILE")


def _places(directory: Path) -> list[Place]:
    root = directory / "models" if (directory / "models").is_dir() else directory
    if (root / "manifest.json").is_file():
        return [Place(root.name, root)]
    try:
        found = [place for place in places_of(root, most=MAX_BUNDLES + 1) if place.path.is_dir()]
    except OSError as error:
        raise ConfigurationError(f"{root} cannot be listed: {error.strerror}") from error
    if len(found) > MAX_BUNDLES:
        raise ConfigurationError(f"{root} holds more than {MAX_BUNDLES} directories")
    return found


def _states(directory: Path) -> dict[str, str]:
    """By place, how the bundles of a deployment stand with the host that runs it; nothing where none does."""
    if not (directory / "deployment.toml").is_file():
        return {}
    try:
        told = served_models(open_deployment(directory))
    except SealgateError:  # no host, or none that this user may ask
        return {}
    return {one.place: state_words(one) for one in told.models}


def list_bundles(directory: Path, publishers_file: Path | None, keys: Sequence[str] = ()) -> int:
    """One line per bundle; exit code 1 if one is refused."""
    places = _places(directory)
    if not places:
        print(f"no bundles under {directory}; train one with: sealgate train CONFIG.toml --out {directory}")
        return 0
    publishers = find_publishers(directory, publishers_file)
    code, states = 0, _states(directory)
    for place in places:
        try:
            if is_pipeline(place.path):
                line = pipeline_line(place.path, publishers, keys)
                print(printable(f"{line}  {states.get(place.called, '')}").rstrip())
                continue
            bundle = as_far_as_possible(place.path, publishers, keys)
        except CertificateError as error:
            print(printable(f"{place.called:28} REFUSED  {error.code}: {error}"))
            code = 1
        else:
            facts = bundle.facts
            line = (
                f"{facts.name:28} {facts.version:10} {bundle.manifest.family:20} "
                f"epsilon {micro_text(facts.epsilon_micro)} at delta {facts.delta}  {facts.sensitivity:16}  "
                f"by {bundle.publisher}  {words_about_weights(bundle)}  {states.get(place.called, '')}"
            )
            print(printable(line).rstrip())
    return code


def verify_aloud(
    directory: Path, publishers_file: Path | None, keys: Sequence[str] = (), *, original: Path | None = None
) -> int:
    """Each step of the verification as it holds; the refusal, if any, is raised. With `original`, which is verified
    too, the bundle's weights must be what compressing that one gives."""

    def told(step: str, detail: str) -> None:
        print(printable(f"  ok  {step}: {detail}"), flush=True)

    publishers = find_publishers(directory, publishers_file)
    if is_pipeline(directory):
        return verify_pipeline_aloud(directory, publishers, keys)
    print(f"verifying {directory}")
    bundle = verify_bundle(directory, publishers, told=told, data_key=open_key_ring(keys).unwrap)
    if original is not None:
        told("original", _made_again(bundle, verify_bundle(original, publishers, data_key=open_key_ring(keys).unwrap)))
    print("how epsilon follows from the certificate, recomputed on this machine:")
    for name, detail in recomputation_lines(bundle.certificate):
        print(printable(f"      {name}: {detail}"), flush=True)
    print(f"verified: {bundle.facts.name} {bundle.facts.version}, certificate SHA-256 {bundle.certificate_digest}")
    print("not shown by this: that the publisher trained the way it says, or anything about the requests to come")
    return 0


def _made_again(bundle: VerifiedBundle, original: VerifiedBundle) -> str:
    return require_compressed(
        bundle.certificate,
        bundle.weights,
        original_certificate_digest=original.certificate_digest,
        original_weights=original.weights,
    )


def show_bundle(directory: Path, publishers_file: Path | None, keys: Sequence[str] = ()) -> int:
    """The verified manifest and certificate in words."""
    if is_pipeline(directory):
        return show_pipeline(directory, find_publishers(directory, publishers_file), keys)
    for line in describe(as_far_as_possible(directory, find_publishers(directory, publishers_file), keys)):
        print(printable(line))
    return 0


def write_report(
    directory: Path, publishers_file: Path | None, keys: Sequence[str] = (), *, out: Path | None, replace: bool
) -> int:
    """One HTML page about the verified bundle."""
    path = out or Path(f"{directory.resolve().name}{HTML}")
    if is_pipeline(directory):
        raise ConfigurationError(f"{directory} is a pipeline: report on its members, as {directory / MEMBERS}/NAME")
    require_page_path(path, replace=replace)
    bundle = whole(directory, find_publishers(directory, publishers_file), keys)
    write_page(bundle, path, replace=replace)
    print(printable(f"{path}: the report on {bundle.facts.name} {bundle.facts.version}"))
    return 0


def describe(bundle: VerifiedStatements) -> list[str]:
    """The lines of `sealgate models show`."""
    manifest, certificate = bundle.manifest, bundle.certificate
    accounting, unit = certificate.accounting, unit_word(certificate.unit)
    lines = [
        f"{manifest.name} {manifest.version}  ({manifest.family}, published by {bundle.publisher})",
        f"  {manifest.description}",
        f"  sensitivity {manifest.sensitivity}; purposes {', '.join(manifest.purposes)}",
    ]
    if bundle.locked_under:
        lines.append(f"  {words_about_weights(bundle)}")
    lines += [
        f"  input  {tensor.name}: {tensor.datatype} {list(tensor.shape)}"
        + (f", columns {', '.join(column.name for column in tensor.columns)}" if tensor.columns else "")
        for tensor in manifest.inputs
    ]
    lines += [
        f"  output {tensor.name}: {tensor.datatype} {list(tensor.shape)}, {tensor.role}"
        + (f" of {', '.join(tensor.labels)}" if tensor.labels else "")
        for tensor in manifest.outputs
    ]
    lines += [
        f"privacy of one {certificate.unit} of the training data "
        f"({name_of(certificate.mechanism)}, {certificate.adjacency})",
        f"  epsilon {micro_text(certificate.epsilon_micro)} at delta {certificate.delta}; "
        f"if one {unit} is replaced: {micro_text(certificate.epsilon_replace_one_micro)}",
        *[f"  {line}" for line in mechanism_lines(certificate.mechanism)],
        f"  {accounting.accountant} {accounting.version}; beside it {accounting.second_accountant} "
        f"{accounting.second_version}: {micro_text(accounting.second_epsilon_micro)}",
        f"  public population {certificate.dataset.public_population}; held out: {certificate.dataset.split}",
        f"  hyper-parameters {certificate.selection.how}: {certificate.selection.note}",
        f"  issued {certificate.issued}; weights SHA-256 {bundle.weights_digest}",
    ]
    for one in certificate.measured:
        lines.append(
            f"  measured at epsilon {micro_text(one.epsilon_micro)}: {one.measure} {interval_text(one)} on {one.rows} "
            "held-out rows"
        )
    if certificate.derived is not None:
        lines.append(f"  made from another model: {derivation_words(certificate.derived)}")
        lines += [f"  {line}" for line in measured_words(certificate.derived)]
    lines.append(f"  audit {audit_words(certificate.audit)}")
    lines += [f"  attacker {line}" for line in attack_lines(curve_of(account_of(certificate)), unit=certificate.unit)]
    for release in certificate.releases:
        covered = "covered by epsilon" if release.covered else "NOT covered by epsilon"
        lines.append(f"  also released: {release.what} ({release.where}), {covered}")
    lines += [f"  does not protect: {text}" for text in certificate.not_protected]
    return lines
