"""A policy directory that is not sound stops the start, with one line that names the file and what is wrong in it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from policy.decide import load_policy
from policy.errors import PolicyFileError
from policy.store import load_files
from sealgate.errors import ConfigurationError

GOOD = '@id("extra") permit (principal is Client, action == Action::"infer", resource is Model);'

OF_LOG = '@id("extra") permit (principal, action == Action::"query-audit", resource is Log)'
TOO_LATE = 'datetime("2026-01-01").offset(duration("9223372036854775807ms")) > datetime("2026-01-01")'


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("principal is Client", 'principal is Client in Tenant::"clinc"', r'Tenant::"clinc" is nobody'),
        ("principal is Client", 'principal == Client::"clinc/app"', r'Client::"clinc/app" is nobody'),
        ("principal is Client", 'principal == Client::"clinic"', r'Client::"clinic" is nobody'),
        ("principal is Client", 'principal == Client::"clinic/\u0430pp"', r'Client::"clinic/.u0430pp" is nobody'),
        ("resource is Model", 'resource == Model::"m\u043edel"', r'Model::"m.u043edel" is nobody'),
        (";", ' when { principal.tenant == Tenant::"clinic2" };', r'Tenant::"clinic2" is nobody'),
        (";", ' when { [Tenant::"clinic", Tenant::"klinik"].contains(principal.tenant) };', r'"klinik" is nobody'),
        (";", ' when { principal.subject == "m\u0430llory" };', r"equals nothing: names are plain ASCII"),
        (";", ' when { ["a", "\\u{202e}b"].contains(principal.subject) };', r"equals nothing"),
        (";", ' when { principal.subject like "\u0430*" };', r"equals nothing"),
        (";", ' when { principal.tenant.hasTag("treatm\u0435nt") };', r"equals nothing"),
        (";", ' when { context.purpose == "a\\nb" };', r"equals nothing"),
    ],
)
def test_a_forbid_of_what_there_cannot_be_does_not_load(policy_dir, old, new, says):
    """Each of these would match nobody, and whoever wrote it would believe to be protected."""
    forbid = '@id("extra") @says("Ärzte") forbid (principal is Client, action == Action::"infer", resource is Model);'
    (policy_dir / "own.cedar").write_text(forbid)
    load_policy(policy_dir)
    (policy_dir / "own.cedar").write_text(forbid.replace(old, new, 1))
    with pytest.raises(PolicyFileError, match=rf'own\.cedar: policy "extra": .*{says}') as refusal:
        load_policy(policy_dir)
    assert str(refusal.value).isascii()


def test_what_may_be_loads(policy_dir):
    of_log = '@id("logs") forbid (principal, action == Action::"query-audit", resource == Log::"tenant:clinic");'
    names = """when { principal == Client::"clinic/some/one@example.org" || principal.subject like "dr-*" ||
    resource == Model::"any-model" || principal.tenant == Tenant::"clinic" };"""
    (policy_dir / "own.cedar").write_text(f"{GOOD[:-1]} {names}\n{of_log}")
    load_policy(policy_dir)
    (policy_dir / "own.cedar").write_text(of_log.replace("tenant:clinic", "tenant:clinc"))
    with pytest.raises(PolicyFileError, match="is nobody's name here"):
        load_policy(policy_dir)


DEEP = {
    "brackets": "(" * 60_000 + "true" + ")" * 60_000,
    "sets": "[" * 5000 + "1" + "]" * 5000 + ".contains(1)",
    "records": "{a: " * 5000 + "1" + "}" * 5000 + " == 1",
    "conditions": "if true then " * 5000 + "true" + " else false" * 5000,
    "ands": " && ".join(["true"] * 60_000),
    "ors, fewer": " || ".join(["context.sealed"] * 400),
    "ors, just too many": " || ".join(["context.sealed"] * 61),
    "attributes": "context" + ".a" * 30_000 + " == 1",
    "factors": "*".join(["1"] * 30_000) + " == 1",
    "behind a quoted quote": '"\\"" == "//" && ' + "(" * 60_000 + "true" + ")" * 60_000,
    "behind a comment": 'true // "\n && ' + "(" * 60_000 + "true" + ")" * 60_000,
}

LOADING = """
import sys
from pathlib import Path
from policy.decide import load_policy
from policy.errors import PolicyFileError
try:
    load_policy(Path(sys.argv[1]))
except PolicyFileError as error:
    print(error)
"""


def loaded_elsewhere(policy_dir):
    """What a process says that loads it; the engine's parser could end ours."""
    done = subprocess.run([sys.executable, "-c", LOADING, str(policy_dir)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-300:]
    return done.stdout


@pytest.mark.parametrize("condition", DEEP.values(), ids=DEEP)
def test_a_policy_that_nests_too_deeply_is_one_refusal_and_not_the_end(policy_dir, condition):
    (policy_dir / "own.cedar").write_text(f"{GOOD[:-1]} when {{ {condition} }};")
    assert "own.cedar: " in loaded_elsewhere(policy_dir)
    assert "for the engine; say it in several policies" in loaded_elsewhere(policy_dir)


def test_a_schema_that_nests_too_deeply_is_refused(policy_dir):
    path = policy_dir / "schema.cedarschema"
    path.write_text(path.read_text() + "type Deep = " + "Set<" * 60_000 + "Long" + ">" * 60_000 + ";")
    assert "schema.cedarschema: a policy or type nests too deeply" in loaded_elsewhere(policy_dir)


def test_a_schema_from_before_a_fact_loads_and_decides_without_it(policy_dir):
    path = policy_dir / "schema.cedarschema"
    line = next(line for line in path.read_text().splitlines() if "audited: Bool" in line)
    path.write_text(path.read_text().replace(line + "\n", ""))
    load_policy(policy_dir)  # asks every question once
    (policy_dir / "own.cedar").write_text(f"{GOOD[:-1]} when {{ resource.audited }};")
    assert "audited" in loaded_elsewhere(policy_dir)


@pytest.mark.parametrize("kind", ["audited: String", "audited: Set<Bool>"])
def test_a_fact_of_another_type_is_no_fact_from_later(policy_dir, kind):
    path = policy_dir / "schema.cedarschema"
    path.write_text(path.read_text().replace("audited: Bool", kind))
    with pytest.raises(PolicyFileError, match="asking whether"):
        load_policy(policy_dir)


def test_policies_as_large_as_people_write_them_load(policy_dir):
    terms = " || ".join(f'principal.subject == "caller-{number}"' for number in range(59))
    names = ", ".join(f'"caller.{number} (a && b)"' for number in range(5000))
    conditions = (terms, f"[{names}].contains(principal.subject)", "(" * 60 + "context.sealed" + ")" * 60)
    texts = [f"{GOOD[:-1].replace('extra', f'extra-{at}')} when {{ {one} }};" for at, one in enumerate(conditions)]
    (policy_dir / "own.cedar").write_text("\n".join(texts) + "// " + "((((" * 100)
    assert {"extra-0", "extra-1", "extra-2"} <= load_policy(policy_dir).rules.keys()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("permit (", r"own\.cedar: .*unexpected end of input"),
        ("permit (principal, action, resource);", r"own\.cedar: every policy needs @id"),
        ('@id("Two Words") permit (principal, action, resource);', r"own\.cedar: every policy needs @id"),
        ('@id("clients-infer") permit (principal, action, resource);', r"clients-infer.* is also in 10-callers"),
        (GOOD.replace("Client", "Klient"), r'own\.cedar: policy "extra": .*Klient'),
        (GOOD.replace("infer", "inver"), r'own\.cedar: policy "extra": .*inver'),
        (GOOD[:-1] + " when { context.nope };", r'own\.cedar: policy "extra": .*nope'),
        (GOOD[:-1] + ' when { context.hour == "9" };', r'own\.cedar: policy "extra": .*types'),
        (GOOD[:-1] + ' when { principal.tenant.getTag("x") > 5 };', r'own\.cedar: policy "extra": .*tag'),
        (GOOD[:-1] + " when { resource.epsilon_micro - 1 > 5 };", r"arithmetic"),
        (GOOD[:-1] + " when { resource.epsilon_micro * 2 > 5 };", r"arithmetic"),
        (GOOD[:-1] + " when { if context.sealed then -resource.epsilon_micro > 5 else false };", r"arithmetic"),
        (OF_LOG + " when { resource.tenant.suspended };", r"optional attribute"),
        (GOOD[:-1] + ' when { decimal("1.00001").lessThan(decimal("2.0")) };', r"failed to parse as a decimal"),
        (GOOD[:-1] + " when { ip(principal.subject).isLoopback() };", r"non-literal"),
        (GOOD[:-1] + f" when {{ {TOO_LATE} }};", r"asking whether a client may infer fails: .*overflow"),
        ('@round_digit("4")' + GOOD, r'policy "extra": unknown annotation @round_digit'),
        ('@round_digits("four")' + GOOD, r"@round_digits is a whole number from 0 to 15"),
        ('@round_digits("16")' + GOOD, r"@round_digits is a whole number from 0 to 15"),
        ('@round_digits("-1")' + GOOD, r"@round_digits is a whole number"),
        ("@round_digits" + GOOD, r"@round_digits is a whole number"),
        ('@top_k("0")' + GOOD, r"@top_k is a whole number from 1"),
        ('@hide_scores("yes")' + GOOD, r'@hide_scores is "true" or "false"'),
        ('@receipt_required("1")' + GOOD, r'@receipt_required is "true" or "false"'),
        ('@single_use("")' + GOOD, r'@single_use is "true" or "false"'),
        ('@noise_epsilon("0")' + GOOD, r"@noise_epsilon is a number above 0 and up to 100"),
        ('@noise_epsilon("0.0000001")' + GOOD, r"@noise_epsilon is a number above 0"),
        ('@noise_epsilon("100.000001")' + GOOD, r"@noise_epsilon is a number above 0 and up to 100"),
        ('@noise_epsilon("1e-3")' + GOOD, r"@noise_epsilon is a number above 0"),
        ('@noise_epsilon("-1")' + GOOD, r"@noise_epsilon is a number above 0"),
        ("@noise_epsilon" + GOOD, r"@noise_epsilon is a number above 0"),
        ('@noise_epsilon("1") @noise_rows("0")' + GOOD, r"@noise_rows is a whole number from 1 to 4096"),
        ('@noise_rows("4")' + GOOD, r"@noise_rows is for permits with @noise_epsilon"),
        ('@top_k("1")' + GOOD.replace("permit", "forbid"), r"a forbid cannot oblige"),
        ('@noise_epsilon("1")' + GOOD.replace("permit", "forbid"), r"a forbid cannot oblige"),
        ('@single_use("false")' + GOOD.replace("permit", "forbid"), r"a forbid cannot oblige"),
        ('@id("t") permit (principal == ?principal, action, resource);', r"templates"),
    ],
)
def test_policies_that_do_not_load(policy_dir, text, says):
    (policy_dir / "own.cedar").write_text(text)
    with pytest.raises(PolicyFileError, match=says) as caught:
        load_policy(policy_dir)
    assert "\n" not in str(caught.value)
    assert "policy0" not in str(caught.value), "the engine's own name for it tells nobody anything"
    assert str(policy_dir) in str(caught.value)
    assert isinstance(caught.value, ConfigurationError)


def test_a_good_policy_beside_the_shipped_ones_loads(policy_dir):
    before = load_policy(policy_dir)
    (policy_dir / "own.cedar").write_text('@says("more")' + GOOD)
    after = load_policy(policy_dir)
    assert set(after.rules) - set(before.rules) == {"extra"}
    assert after.rules["extra"].file == "own.cedar"
    assert after.digest != before.digest


@pytest.mark.parametrize(
    "name", ["own.ceder", "own.cedar~", "own.cedar.bak", "tenants.tml", "notes", "UPPER.CEDAR", "sub", "a b.cedar"]
)
def test_a_misspelt_file_is_refused_not_ignored(policy_dir, name):
    if name == "sub":
        (policy_dir / name).mkdir()
    else:
        (policy_dir / name).write_text("")
    with pytest.raises(PolicyFileError, match="not a file of a policy directory"):
        load_policy(policy_dir)


@pytest.mark.parametrize("name", ["schema.cedarschema", "tenants.toml", "budgets.toml"])
def test_a_missing_file_is_refused(policy_dir, name):
    (policy_dir / name).unlink()
    with pytest.raises(PolicyFileError, match=f"{name} is missing"):
        load_policy(policy_dir)


def test_no_directory_or_no_permission(policy_dir, tmp_path):
    with pytest.raises(PolicyFileError, match="cannot be read: No such file"):
        load_policy(tmp_path / "nowhere")
    (policy_dir / "dir.cedar").mkdir()
    with pytest.raises(PolicyFileError, match="cannot be read: Is a directory"):
        load_policy(policy_dir)


def test_only_forbids_is_refused(policy_dir):
    (policy_dir / "10-callers.cedar").unlink()
    with pytest.raises(PolicyFileError, match="no policy permits anything"):
        load_policy(policy_dir)


def test_oversized_and_binary_files(policy_dir):
    (policy_dir / "own.cedar").write_bytes(b"\xff\xfe")
    with pytest.raises(PolicyFileError, match=r"own\.cedar: not UTF-8"):
        load_policy(policy_dir)
    (policy_dir / "own.cedar").write_bytes(b"/" * (1024 * 1024 + 1))
    with pytest.raises(PolicyFileError, match=r"own\.cedar: larger than"):
        load_policy(policy_dir)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("entity Tenant", "entity Tenent", "schema.cedarschema: .*Tenant"),
        ("sealed: Bool", "sealed: Long", r"sealed-always|context|type"),
        ("epsilon_micro: Long", "epsilon_micro: String", r"epsilon-within-purpose"),
        ("hour: Long,", "hour: Long, minute: Long,", r"asking whether a .* may .* fails"),
        ("version: String,", "version: String, owner: String,", r"asking whether a .* may .* fails"),
        ("authn: String,", "", r"asking whether a .* may .* fails"),
        ("suspended: Bool,", "suspended: Bool, country: String,", r"does not fit tenants.toml"),
        ("entity Deployment;", "entity Deployment", r"schema.cedarschema: "),
    ],
)
def test_a_schema_that_does_not_fit_is_found_at_start(policy_dir, old, new, says):
    path = policy_dir / "schema.cedarschema"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(PolicyFileError, match=says) as caught:
        load_policy(policy_dir)
    assert "\n" not in str(caught.value)


def test_digest_covers_every_file_that_counts_and_nothing_else(policy_dir):
    seen = {load_files(policy_dir).digest}
    for path in sorted(policy_dir.iterdir()):
        data = path.read_bytes()
        path.write_bytes(data + b"\n")
        seen.add(load_files(policy_dir).digest)
        path.write_bytes(data)
    assert len(seen) == 1 + len(list(policy_dir.iterdir()))
    (policy_dir / "10-callers.cedar").rename(policy_dir / "11-callers.cedar")
    renamed = load_files(policy_dir).digest
    assert renamed not in seen
    (policy_dir / ".hidden").write_text("x")
    (policy_dir / "examples").mkdir()
    (policy_dir / "examples" / "broken.cedar").write_text("permit")
    assert load_files(policy_dir).digest == renamed
    load_policy(policy_dir)


def test_digest_separates_names_from_contents(policy_dir):
    """Moving bytes from one file to the next changes the digest, though the joined bytes stay the same."""
    first, second = policy_dir / "20-separation.cedar", policy_dir / "30-privacy.cedar"
    before = load_files(policy_dir).digest
    head, tail = first.read_bytes(), second.read_bytes()
    first.write_bytes(head + tail[:1])
    second.write_bytes(tail[1:])
    assert load_files(policy_dir).digest != before
