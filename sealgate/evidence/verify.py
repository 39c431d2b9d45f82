"""Step 1 of a request's life: from evidence bytes to the key configurations that a client may seal to.

    1  signature       the envelope is signed by an operator key of the trust file
    2  endorsements    somebody vouches for exactly this payload; that sets the grade. A GPU is vouched for only beside
                       the machine that it is in, and must be where the trust file names GPUs
    3  grade           the grade is one that the trust file accepts, and the claims state no stronger one
    4  nonce           made for this asker, now
    5  time            issued, not expired, and not for longer than a lifetime
    6  audience        about the deployment that the trust file names
    7  key-configs     at least one usable key; the published list is the same, byte for byte
    8  completion-key  an Ed25519 key
    9  log             the checkpoint is signed by a log key of the trust file, for the origin that is claimed
    10 profile         a sandbox profile that the trust file accepts
    11 pins            per pinned model: weights digest, certificate digest, largest epsilon; and the ceiling for all
    12 policy          one of the policies that the trust file names is in force
    13 measurements    each pinned measurement (code, configuration, ...) is one of those that the trust file names
    14 layers          each required sandbox layer is on, by the worker's word and not denied by the host's

`verify_evidence` is the only maker of `VerifiedEvidence`, and that is the only way to the keys. Every claim carries a
grade: who vouches for it. Sandbox layers, measurements and privacy figures are the runtime's own word, unless the trust
file says that what a quote pins covers the code that states them.

Trusts: the trust file and the caller's clock. Never: returns a verdict that can be ignored.
Long, because the fourteen steps stand on one page, in the order in which they run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from sealgate.errors import DecodeError, EvidenceError, SealgateError
from sealgate.evidence.claims import Claims, decode_claims, state_digest
from sealgate.evidence.endorsements import nvidia_gpu, snp, tdx, tpm
from sealgate.evidence.endorsements.endorsed import Endorsed
from sealgate.evidence.token import SOFTWARE, Token, key_id, parse_token, verify_signature, verify_software
from sealgate.evidence.transcript import Check, EvidenceRefused, Transcript
from sealgate.evidence.trust import ModelPin, Trust
from sealgate.limits import EVIDENCE_LIFETIME_S, EVIDENCE_SKEW_S, MAX_NONCE, MIN_NONCE
from sealgate.protocol.frames import ModelFacts
from sealgate.protocol.ohttp import KeyConfig, decode_key_configs
from sealgate.transparency.notes import Checkpoint, open_checkpoint
from sealgate.transparency.shards import belongs_to

SELF_ASSERTED = "self-asserted"
KINDS = (SOFTWARE, tpm.KIND, snp.KIND, tdx.KIND, nvidia_gpu.KIND)
"""Endorsements that this verifier knows."""

_NO_DEVICE = "cpu"  # a worker that computes on no device beside the processor
WORKER_PREFIX = "worker."  # of measurements that the worker reads of itself
GRADES = (SELF_ASSERTED, SOFTWARE, "tpm", "hardware")
"""Who vouches for a claim, weakest first."""

_SELF_ASSERTED_CLAIMS = ("layers", "probes", "device", "measurements", "models.epsilon", "models.purposes")
_VOUCHED_CLAIMS = (
    "nonce",
    "time",
    "audience",
    "key_configs",
    "completion_key",
    "instance",
    "models.digests",
    "host_layers",
    "profile",
    "policy_digest",
    "log",
)


@dataclass(frozen=True, kw_only=True)
class VerifiedEvidence:
    """Evidence that holds under a trust file; made only by `verify_evidence`.

    Proves: an operator key of the trust file signed these claims for this asker, and they fit the trust file. Does not
    prove more than `grades` says: a `software` grade is the operator's word. Valid until `expires_us`, no longer.
    """

    claims: Claims
    key_configs: tuple[KeyConfig, ...]
    completion_key: Ed25519PublicKey
    checkpoint: Checkpoint
    grade: str
    grades: Mapping[str, str]
    transcript: tuple[Check, ...]
    digest: str  # SHA-256 of the evidence bytes
    state_digest: str  # what records of this instance name as evidence_digest
    expires_us: int
    raw: bytes

    def require_current(self, now_us: int) -> None:
        """Raises EvidenceError once the evidence has expired."""
        if now_us >= self.expires_us:
            raise EvidenceError("the evidence has expired", code="evidence-expired")

    def versions(self, name: str, version: str = "") -> tuple[ModelFacts, ...]:
        """What the evidence says of each version of a model, or of the one that is named; raises EvidenceError if it is
        not served. Which of them answers is the operator's choice, where a request names none."""
        found = tuple(one for one in self.claims.models if one.name == name and version in ("", one.version))
        if not found:
            served = ", ".join(dict.fromkeys(facts.name for facts in self.claims.models)) or "none"
            wanted = f"model '{name}'" + (f" of version '{version}'" if version else "")
            raise EvidenceError(f"no {wanted} is served here; served: {served}", code="model-not-served")
        return found

    def model(self, name: str, *, certificate_digest: str = "") -> ModelFacts:
        """What the evidence says of a model: of the version with this certificate, or of the last that it names; raises
        EvidenceError if it is not served."""
        found = self.versions(name)
        return next((one for one in found if one.certificate_digest == certificate_digest), found[-1])


def verify_evidence(data: bytes, trust: Trust, *, now_us: int, nonce: bytes, published: bytes) -> VerifiedEvidence:
    """Run the checks in order; raises EvidenceRefused with the transcript at the first that fails.

    `nonce` is what this asker sent, `published` the list at /.well-known/ohttp-gateway. Neither may be empty.
    """
    if not MIN_NONCE <= len(nonce) <= MAX_NONCE or not published:
        raise EvidenceError("evidence cannot be verified without a nonce and the published keys", code="no-expectation")
    transcript = Transcript(subject="evidence", refusal=EvidenceRefused, strict=trust.strict)
    try:
        token = parse_token(data)
        claims = decode_claims(token.payload)
    except DecodeError as error:
        transcript.fail("form", str(error), anchor="RFC 9711", cause=error)
    transcript.passed("form", f"{len(data)} bytes, profile known", anchor="RFC 9711")
    operator, anchor = _check_signature(token, trust, transcript)  # 1
    endorsements = _check_endorsements(token, operator, anchor, trust, now_us, transcript)  # 2
    _check_devices(claims, endorsements, trust, transcript)
    grade, grades = _graded(endorsements)
    _check_grade(claims, grade, anchor, trust, transcript)  # 3
    transcript.require(
        claims.nonce == nonce, "nonce", "ours", anchor="this request", otherwise="it answers another nonce"
    )
    _check_time(claims, now_us, transcript)  # 5
    transcript.require(  # 6
        claims.audience == trust.audience,
        "audience",
        claims.audience,
        anchor=trust.source,
        otherwise=f"it is about another deployment than {trust.audience}",
    )
    configs = _check_keys(claims, published, anchor, transcript)  # 7
    completion_key = Ed25519PublicKey.from_public_bytes(claims.completion_key)  # 8; 32 bytes by its type
    transcript.passed("completion-key", f"instance {claims.instance}", anchor=anchor)
    checkpoint = _check_log(claims, trust, transcript)  # 9
    _check_profile(claims, trust, transcript)  # 10
    _check_pins(claims, trust, transcript)  # 11
    _check_policy(claims, trust, transcript)  # 12
    _check_measurements(claims, trust, transcript)  # 13
    _check_layers(claims, trust, transcript)  # 14
    return VerifiedEvidence(
        claims=claims,
        key_configs=configs,
        completion_key=completion_key,
        checkpoint=checkpoint,
        grade=grade,
        grades=MappingProxyType(grades),
        transcript=transcript.checks,
        digest=token.digest,
        state_digest=state_digest(claims),
        expires_us=claims.expires_at_us,
        raw=data,
    )


def _check_signature(token: Token, trust: Trust, transcript: Transcript) -> tuple[bytes, str]:
    """The operator key that signed, and how to name it."""
    key = next((known for known in trust.operator_keys if key_id(known) == token.kid), None)
    if key is None:
        transcript.fail("signature", "it is signed by a key that is not in operator_keys", anchor=trust.source)
    anchor = f"operator key {token.kid.hex()}"
    try:
        verify_signature(token, key)
    except EvidenceError as error:
        transcript.fail("signature", "the operator's signature does not hold", anchor=anchor, cause=error)
    transcript.passed("signature", "Ed25519 over the claims", anchor=anchor)
    return key, anchor


def _check_endorsements(
    token: Token, operator: bytes, anchor: str, trust: Trust, now_us: int, transcript: Transcript
) -> tuple[Endorsed, ...]:
    """All that vouch; a kind twice is refused, so that the better of two stories cannot be picked."""
    kinds = [endorsement.kind for endorsement in token.endorsements]
    if len(set(kinds)) != len(kinds):
        transcript.fail("endorsement", "two endorsements are of one kind", anchor="limit")
    found: list[Endorsed] = []
    for endorsement in token.endorsements:
        if endorsement.kind == SOFTWARE:
            try:
                verify_software(token, endorsement, operator)
            except EvidenceError as error:
                transcript.fail("endorsement", "an endorsement does not cover these claims", anchor=anchor, cause=error)
            transcript.passed("endorsement", "software: the operator's word, no hardware", anchor=anchor)
            found.append(Endorsed(kind=SOFTWARE, grade=SOFTWARE, detail="", anchor=anchor, covers_code=False))
            continue
        judge = _judge(endorsement.kind, trust, now_us)
        if judge is None:
            kind = "".join(char if char.isalnum() or char in "-_" else "?" for char in endorsement.kind[:20])
            why = f"the trust file has no [{kind}]" if endorsement.kind in KINDS else "it is not known to this verifier"
            transcript.skipped("endorsement", f"kind '{kind}': {why}", anchor="none")
            continue
        try:
            endorsed = judge(endorsement.proof, token.bind)
        except (EvidenceError, DecodeError) as error:
            transcript.fail("endorsement", f"{endorsement.kind}: {error}", anchor=trust.source, cause=error)
        transcript.passed("endorsement", f"{endorsed.kind}: {endorsed.detail}", anchor=endorsed.anchor)
        found.append(endorsed)
    return tuple(found)


def _judge(kind: str, trust: Trust, now_us: int) -> Callable[[bytes, bytes], Endorsed] | None:
    """What judges a kind of endorsement under this trust file; None if it says nothing of that kind."""
    if kind == tpm.KIND and trust.tpm is not None:
        anchor = trust.tpm
        return lambda proof, bind: tpm.judge_tpm(proof, bind, anchor)
    if kind == snp.KIND and trust.snp is not None:
        root = trust.snp
        return lambda proof, bind: snp.judge_snp(proof, bind, root, now_us=now_us)
    if kind == tdx.KIND and trust.tdx is not None:
        domains = trust.tdx
        return lambda proof, bind: tdx.judge_tdx(proof, bind, domains, now_us=now_us)
    if kind == nvidia_gpu.KIND and trust.nvidia_gpu is not None:
        gpus = trust.nvidia_gpu
        return lambda proof, bind: nvidia_gpu.judge_nvidia_gpu(proof, bind, gpus, now_us=now_us)
    return None


def _check_devices(claims: Claims, endorsements: tuple[Endorsed, ...], trust: Trust, transcript: Transcript) -> None:
    """No GPU without the machine that asked it; and none missing, for the list of endorsements is not signed."""
    devices = [one for one in endorsements if one.device_only]
    machines = [one for one in endorsements if one.grade == "hardware" and not one.device_only]
    if devices and not machines:
        why = "a GPU's report counts only beside the report of the confidential machine (snp, tdx) that asked for it"
        transcript.fail("endorsement", why, anchor=trust.source)
    if trust.nvidia_gpu is not None and not devices and claims.device != _NO_DEVICE:
        why = f"the trust file names GPUs, and nothing vouches for the worker's device {claims.device[:20]}"
        transcript.fail("endorsement", why, anchor=trust.source)


def _graded(endorsements: tuple[Endorsed, ...]) -> tuple[str, dict[str, str]]:
    """The grade of the whole, and of each claim: the strongest of those who vouch for it. A GPU vouches for none."""
    endorsements = tuple(one for one in endorsements if not one.device_only)
    grade = max((one.grade for one in endorsements), key=GRADES.index, default=SELF_ASSERTED)
    covering = (one.grade for one in endorsements if one.covers_code)
    own = max(covering, key=GRADES.index, default=SELF_ASSERTED)
    return grade, dict.fromkeys(_VOUCHED_CLAIMS, grade) | dict.fromkeys(_SELF_ASSERTED_CLAIMS, own)


def _check_grade(claims: Claims, grade: str, anchor: str, trust: Trust, transcript: Transcript) -> None:
    if grade == SELF_ASSERTED:
        transcript.fail("grade", "nobody whom this verifier knows vouches for its claims", anchor="none")
    if claims.assurance not in GRADES or GRADES.index(claims.assurance) > GRADES.index(grade):
        transcript.fail("grade", "it claims more assurance than its endorsements give", anchor=anchor)
    if grade == SOFTWARE and not trust.accept_software:
        why = "it is software evidence; to accept an operator's word set accept_software = true in the trust file"
        transcript.fail("grade", why, anchor=trust.source)
    transcript.passed("grade", f"{grade}, accepted by the trust file", anchor=trust.source)


def _check_time(claims: Claims, now_us: int, transcript: Transcript) -> None:
    if claims.expires_at_us <= now_us:
        transcript.fail("time", "it has expired", anchor="this machine's clock")
    if claims.issued_at_us > now_us + EVIDENCE_SKEW_S * 1_000_000:
        transcript.fail(
            "time", "it was issued in the future; check this machine's clock", anchor="this machine's clock"
        )
    if not 0 < claims.expires_at_us - claims.issued_at_us <= EVIDENCE_LIFETIME_S * 1_000_000:
        transcript.fail("time", "it claims to hold for longer than evidence may", anchor="limit")
    left_s = (claims.expires_at_us - now_us) // 1_000_000
    transcript.passed("time", f"valid for another {left_s} s", anchor="this machine's clock")


def _check_keys(claims: Claims, published: bytes, anchor: str, transcript: Transcript) -> tuple[KeyConfig, ...]:
    try:
        configs = decode_key_configs(claims.key_configs)
    except SealgateError as error:
        transcript.fail("key-configs", "its key list is malformed", anchor=anchor, cause=error)
    if not configs:
        transcript.fail("key-configs", "it has no key of a kind that this client knows", anchor=anchor)
    bound, listed = _each_config(claims.key_configs), _each_config(published)
    runs = (listed[start : start + len(bound)] for start in range(len(listed) - len(bound) + 1))
    if bound not in runs:  # one worker's keys stand together on the list of all
        why = "the gateway publishes other keys than the evidence binds"
        transcript.fail("key-configs", why, anchor="/.well-known/ohttp-gateway")
    kems = ", ".join(f"{config.kem.name} id {config.key_id}" for config in configs)
    others = len(listed) - len(bound)
    seen = f"on the published list, which has {others} of other workers" if others else "equal to the published list"
    transcript.passed("key-configs", f"{kems}; {seen}", anchor=anchor)
    return configs


def _each_config(data: bytes) -> list[bytes]:
    """The configurations of a list, each as its bytes; a rest that is none counts as one."""
    found, start = [], 0
    while start < len(data):
        end = start + 2 + int.from_bytes(data[start : start + 2], "big")
        found.append(data[start:end])
        start = end
    return found


def _check_log(claims: Claims, trust: Trust, transcript: Transcript) -> Checkpoint:
    try:
        opened = open_checkpoint(claims.log_checkpoint, trust.log_keys)
    except SealgateError as error:
        transcript.fail(
            "log", "its checkpoint is not signed by a log key of the trust file", anchor="log_keys", cause=error
        )
    checkpoint = opened.checkpoint
    if not belongs_to(checkpoint.origin, claims.log_origin):
        transcript.fail("log", "its checkpoint belongs to another log than it names", anchor="log_keys")
    transcript.passed("log", f"{checkpoint.origin} at size {checkpoint.size}", anchor="log_keys")
    return checkpoint


def _check_profile(claims: Claims, trust: Trust, transcript: Transcript) -> None:
    seen = claims.profile + (" (degraded)" if claims.degraded else "")
    if trust.profiles is None:
        transcript.skipped("profile", f"{seen}; the trust file names no profiles", anchor=SELF_ASSERTED)
        return
    acceptable = claims.profile in trust.profiles and (not claims.degraded or "dev" in trust.profiles)
    otherwise = f"its sandbox profile is {seen}, the trust file accepts {', '.join(trust.profiles)}"
    transcript.require(acceptable, "profile", seen, anchor=SELF_ASSERTED, otherwise=otherwise)


def _check_pins(claims: Claims, trust: Trust, transcript: Transcript) -> None:
    if len({(facts.name, facts.version) for facts in claims.models}) != len(claims.models):
        transcript.fail("pins", "it names a model twice", anchor=SELF_ASSERTED)
    for facts in claims.models:
        if trust.max_epsilon_micro is not None:
            _check_epsilon(facts, trust.max_epsilon_micro, transcript)
    used: set[str] = set()
    for facts in sorted(claims.models, key=lambda one: (one.name, one.version)):
        # A pin of "NAME/VERSION" is about that version alone, one of "NAME" about every version that has none.
        name = next((name for name in (f"{facts.name}/{facts.version}", facts.name) if name in trust.models), None)
        if name is None:
            transcript.skipped("pins", f"{facts.name}: the trust file pins nothing", anchor=trust.source)
        else:
            used.add(name)
            _check_pin(facts, trust.models[name], trust, transcript)
    for name in sorted(set(trust.models) - used):
        transcript.skipped("pins", f"{name}: pinned, but not served", anchor=trust.source)


def _check_policy(claims: Claims, trust: Trust, transcript: Transcript) -> None:
    seen = f"{claims.policy_digest[:16]}..."
    if not trust.policy_digests:
        transcript.skipped("policy", f"{seen}; the trust file names no policies", anchor=trust.source)
        return
    otherwise = f"the policy {seen} is in force, which policy_digests of the trust file does not name"
    transcript.require(
        claims.policy_digest in trust.policy_digests, "policy", seen, anchor=trust.source, otherwise=otherwise
    )


def _check_measurements(claims: Claims, trust: Trust, transcript: Transcript) -> None:
    """A pin on `code` is one on what the worker reads as its own code too."""
    if not trust.measurements:
        transcript.skipped("measurements", "the trust file pins none", anchor=trust.source)
    for name, expected in sorted(trust.measurements.items()):
        seen = {place: claims.measurements.get(place) for place in (name, f"{WORKER_PREFIX}{name}")}
        if seen[name] is None:
            transcript.fail("measurements", f"it states no measurement '{name}', which is pinned", anchor=trust.source)
        for place, value in seen.items():
            if value is not None:
                otherwise = f"its measurement '{place}' is {value[:16]}..., which the trust file does not name"
                detail = f"{place} {value[:16]}..."
                transcript.require(value in expected, "measurements", detail, anchor=trust.source, otherwise=otherwise)


def _check_layers(claims: Claims, trust: Trust, transcript: Transcript) -> None:
    if not trust.required_layers:
        transcript.skipped("layers", "the trust file requires none by name", anchor=SELF_ASSERTED)
    for name in trust.required_layers:
        worker, host = claims.layers.get(name), claims.host_layers.get(name)
        state = "not stated" if worker is None else worker.state
        denied = host is not None and host.state != "on"
        otherwise = f"the sandbox layer '{name}' is required, and is {'denied by the host' if denied else state}"
        transcript.require(
            state == "on" and not denied, "layers", f"{name} is on", anchor=SELF_ASSERTED, otherwise=otherwise
        )


def _check_pin(facts: ModelFacts, pin: ModelPin, trust: Trust, transcript: Transcript) -> None:
    for what, expected, seen in (
        ("weights", pin.model_digest, facts.model_digest),
        ("certificate", pin.certificate_digest, facts.certificate_digest),
    ):
        if expected is None:
            transcript.skipped("pins", f"{facts.name}: no {what} digest pinned", anchor=trust.source)
        else:
            otherwise = f"model {facts.name} has another {what} digest than the trust file pins"
            detail = f"{facts.name}: {what} {seen[:16]}..."
            transcript.require(seen == expected, "pins", detail, anchor=trust.source, otherwise=otherwise)
    if pin.max_epsilon_micro is None:
        transcript.skipped("pins", f"{facts.name}: no largest epsilon pinned", anchor=trust.source)
        return
    _check_epsilon(facts, pin.max_epsilon_micro, transcript)


def _check_epsilon(facts: ModelFacts, most: int, transcript: Transcript) -> None:
    epsilon = f"{facts.epsilon_micro / 1_000_000:g}"
    otherwise = f"model {facts.name} states epsilon {epsilon}, the trust file allows {most / 1e6:g}"
    within = 0 <= facts.epsilon_micro <= most
    transcript.require(within, "pins", f"{facts.name}: epsilon {epsilon}", anchor=SELF_ASSERTED, otherwise=otherwise)
