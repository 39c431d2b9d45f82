"""The dashboard and the alerts that are shipped speak of metrics and labels that really exist, and leave none out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from sealgate.protocol.figures import FAMILIES, STEPS
from sealgate.protocol.tracing import SPANS

FOLDER = Path(__file__).parents[2] / "deploy" / "monitoring"
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
ALERTS = (FOLDER / "alerts.yml").read_text()
OPERATIONS = (FOLDER.parents[1] / "docs" / "operations.md").read_text()

_METRIC = re.compile(r"\b(sealgate_[a-z_]+)")
_SELECTOR = re.compile(r"\b(sealgate_[a-z_]+)\{([^}]*(?:\{[^}]*\}[^}]*)*)\}")
_BY = re.compile(r"\bby \(([a-z_, ]+)\)")


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions_of_dashboard() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS)["groups"] for rule in group["rules"]]


def expressions_of_alerts() -> list[str]:
    return [" ".join(rule["expr"].split()) for rule in rules()]


def family_of(metric: str) -> str:
    """A histogram is asked for by its buckets, its count or its sum; everything else by its name."""
    for suffix in ("_bucket", "_count", "_sum"):
        name = metric.removesuffix(suffix)
        if name != metric and name in FAMILIES and FAMILIES[name].kind == "histogram":
            return name
    assert FAMILIES[metric].kind != "histogram", f"{metric} is a histogram: its own name has no samples"
    return metric


@pytest.mark.parametrize("expression", [*expressions_of_dashboard(), *expressions_of_alerts()])
def test_expressions_speak_of_what_exists(expression: str) -> None:
    metrics = [family_of(metric) for metric in _METRIC.findall(expression)]
    assert metrics or expression.startswith("up{")
    known = {label for metric in metrics for label in FAMILIES[metric].labels}
    for metric, selector in _SELECTOR.findall(expression):
        for label in re.findall(r"([a-z_]+)(?:=~|!=|=)\"", selector):
            assert label in FAMILIES[family_of(metric)].labels, f"{metric} has no label {label}"
    for names in _BY.findall(expression):
        assert {name.strip() for name in names.split(",")} <= known | {"le"}
    for metric in metrics:
        if FAMILIES[metric].kind == "counter":  # a counter by itself says when somebody restarted
            assert re.search(rf"(?:rate|increase)\({metric}", expression), expression
    assert expression.count("(") == expression.count(")")


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {family_of(metric) for text in expressions_of_dashboard() for metric in _METRIC.findall(text)}
    assert shown == set(FAMILIES)


def test_legends_use_labels_that_the_expression_leaves() -> None:
    for panel in panels():
        for target in panel["targets"]:
            wanted = set(re.findall(r"\{\{([a-z_]+)\}\}", target["legendFormat"]))
            left = {name.strip() for names in _BY.findall(target["expr"]) for name in names.split(",")}
            metrics = [family_of(metric) for metric in _METRIC.findall(target["expr"])]
            assert wanted <= (left or {label for metric in metrics for label in FAMILIES[metric].labels}), panel[
                "title"
            ]


def test_panels_do_not_overlap_and_have_numbers_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_every_alert_has_a_name_of_its_own_a_severity_and_says_what_to_do() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names) >= 10
    for rule in rules():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("page", "warn", "info")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert all(text and "\n" not in text for text in rule["annotations"].values())


def test_every_metric_step_and_span_is_described() -> None:
    for name in FAMILIES:
        assert f"`{name}`" in OPERATIONS, name
    for name in (*STEPS, *SPANS):
        assert f"`{name}`" in OPERATIONS, name


def test_the_shipped_alerts_are_named_in_the_scrape_configuration() -> None:
    scraping = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    assert scraping["rule_files"] == ["alerts.yml"]
    assert [job["job_name"] for job in scraping["scrape_configs"]] == ["sealgate"]
    assert 'job="sealgate"' in ALERTS
