"""The report on a bundle: in a real Chromium, on paper, and against bundles that try to break out of it."""

from __future__ import annotations

import argparse
import base64
import re
from html.parser import HTMLParser

import msgspec
import pytest

from sealgate.certificate.bundle import verify_bundle
from sealgate.certificate.commands import MODELS
from sealgate.certificate.measured import wilson
from sealgate.certificate.page.charts import Axis, Frame, steps_to
from sealgate.certificate.page.document import page_of
from sealgate.certificate.page.facts import points_of
from sealgate.certificate.page.markup import element, text
from sealgate.certificate.schema import Audit, AuditProbe, Measured
from sealgate.errors import CertificateError, ConfigurationError
from tests.peers.components import require_accessibility_checker, require_browser
from tests.sealgate.certificate.accounting.test_described import OBJECTIVE
from tests.sealgate.certificate.conftest import Forge, figures

HOSTILE = "\"'><img src=x onerror=document.title='broken'><script>document.title='broken'</script>\u202e"
PROBES = ("freshness", "clipping", "sampling", "constants", "neighbours", "noise", "contributions", "lanes")


def measured(right: int, rows: int = 200, *, epsilon_micro: int | None = None) -> Measured:
    low, high = wilson(right, rows)
    return Measured(
        epsilon_micro=epsilon_micro or figures().add_remove_micro,
        measure="accuracy",
        rows=rows,
        right=right,
        value_micro=round(right / rows * 1e6),
        low_micro=round(low * 1e6),
        high_micro=round(high * 1e6),
    )


def audited(found: str = "0 of 384 were the same") -> Audit:
    return Audit(
        method="lanes-and-replay",
        epsilon_lower_micro=900_000,
        confidence_ppm=999_000,
        canaries=20_000,
        steps=60,
        probes=tuple(AuditProbe(name=name, verdict="held", found=found) for name in PROBES),
        code_digest="cd" * 32,
    )


SWEEP = (
    measured(180),
    measured(150, epsilon_micro=500_000),
    measured(160, epsilon_micro=500_000),
    measured(190, epsilon_micro=8_000_000),
)


def full(**changes: object) -> Forge:
    """A bundle that says all that a bundle may say."""
    return Forge().claim(measured=SWEEP, audit=audited(), **changes)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    forge = full()
    return page_of(verify_bundle(forge.write(tmp_path_factory.mktemp("page") / "toy"), forge.publishers))


@pytest.fixture(scope="module")
def browser():
    program = require_browser()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


class Structure(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_carries_no_script_nor_anything_from_elsewhere(page):
    structure = Structure()
    structure.feed(page)
    assert structure.open == []
    assert {"script", "img", "link", "iframe", "object"} & set(structure.names) == set()
    assert re.findall(r"(?:https?:)?//\w", page) == []
    assert structure.names.count("svg") == 4
    for words in ("In plain words", "epsilon 3", "90.0 %", "8 probes held", "Wrongly accused", "dp-accounting-rdp"):
        assert words in page


def test_what_the_publisher_wrote_stays_text(tmp_path):
    forge = full(selection__note=HOSTILE, not_protected=(HOSTILE,), dataset__split=HOSTILE)
    forge.certificate = msgspec.structs.replace(forge.certificate, audit=audited(HOSTILE))
    forge.manifest = msgspec.structs.replace(forge.manifest, description=HOSTILE)
    shown = page_of(verify_bundle(forge.write(tmp_path / "toy"), forge.publishers))
    assert "<img" not in shown
    assert "<script" not in shown
    assert "\u202e" not in shown
    assert shown.count("&lt;script&gt;") == len(PROBES) + 4


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_it(page, browser, tmp_path, scheme):
    """axe finds nothing, nothing scrolls sideways but tables and pictures, and nothing is refused by the policy."""
    checker = require_accessibility_checker()
    (tmp_path / "page.html").write_text(page)
    for width in (360, 1100):
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800}, bypass_csp=True)
        window = context.new_page()
        window.goto((tmp_path / "page.html").as_uri())
        window.evaluate(checker)
        result = window.evaluate("axe.run(document, {resultTypes: ['violations']})")
        assert [item["id"] for item in result["violations"]] == []
        assert window.evaluate("document.documentElement.scrollWidth <= innerWidth")
        context.close()


def test_its_own_policy_allows_its_style_and_it_prints(page, browser, tmp_path):
    (tmp_path / "page.html").write_text(page)
    window = browser.new_page(color_scheme="dark")
    said: list[str] = []
    window.on("console", lambda message: said.append(message.text))
    window.goto((tmp_path / "page.html").as_uri())
    assert window.evaluate("getComputedStyle(document.querySelector('section')).borderRadius") == "12px"
    assert said == []
    window.emulate_media(media="print")
    assert window.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    printed = window.pdf(prefer_css_page_size=True)
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 9
    window.close()


def test_a_bundle_without_audit_steps_or_quality_says_so(tmp_path):
    forge = Forge().claim(mechanism=OBJECTIVE)
    account = forge.certificate
    from sealgate.certificate.accounting.described import account_of

    found = account_of(account).epsilon()
    forge.claim(
        accounting__accountant=account_of(account).accountant,
        epsilon_micro=found.add_remove_micro,
        epsilon_replace_one_micro=found.replace_one_micro,
        accounting__second_epsilon_micro=found.add_remove_micro,
        accounting__second_accountant="analytic-gaussian",
    )
    shown = page_of(verify_bundle(forge.write(tmp_path / "toy"), forge.publishers))
    assert "Nobody attacked the trainer" in shown
    assert "there are no steps to draw" in shown
    assert "states no measured quality" in shown


def test_points_keep_the_interval_of_one_run():
    points = points_of(SWEEP)
    assert [round(point.epsilon, 1) for point in points] == [0.5, round(figures().add_remove_micro / 1e6, 1), 8.0]
    assert points[0].mean == pytest.approx(0.775)
    assert points[0].runs == (0.75, 0.8)
    assert points[0].high - points[0].low == pytest.approx(wilson(155, 200)[1] - wilson(155, 200)[0], abs=0.002)
    assert [point.ours for point in points] == [None, 0.9, None]


def test_axes_and_ticks():
    assert steps_to(3.0) == [0, 0.5, 1, 1.5, 2, 2.5, 3]
    assert steps_to(150)[-1] == 150
    assert all(steps_to(high)[-1] >= high and len(steps_to(high)) <= 7 for high in (0.013, 0.9, 7.7, 1234.0, 2e6))
    axis = Axis(name="", low=0.001, high=1.0, ticks=(), label=str, logarithmic=True)
    assert [round(axis.share(value), 6) for value in (0.001, 0.1, 1.0, 5.0, 0.0)] == [0, 0.666667, 1, 1, 0]
    frame = Frame(across=axis, up=Axis(name="", low=0.0, high=1.0, ticks=(), label=str))
    assert frame.y(0.0) > frame.y(0.5) > frame.y(1.0)


def test_elements_escape_their_text_and_their_attributes():
    assert element("p", "<b>", class_='"x"') == '<p class="&quot;x&quot;">&lt;b&gt;</p>'
    assert element("circle", cx=1.25, r=3.0, data_name=None) == '<circle cx="1.2" r="3"/>'
    assert text("a\u202eb\x1b") == "a?b?"


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    MODELS.configure(parser)
    return MODELS.run(parser.parse_args([str(word) for word in words]))


def test_the_command_writes_it_once(tmp_path, capsys):
    forge = full()
    forge.write(tmp_path / "models" / "toy")
    key = base64.b64encode(forge.key.public_key().public_bytes_raw()).decode()
    (tmp_path / "publishers.toml").write_text(f'[[publisher]]\nname = "hospital"\nkey = "{key}"\n')
    out = tmp_path / "reports" / "toy.html"
    assert run("report", tmp_path / "models" / "toy", "--out", out) == 0
    assert "hospital" in out.read_text()
    assert [path.name for path in out.parent.iterdir()] == ["toy.html"]
    assert "toy.html" in capsys.readouterr().out
    with pytest.raises(ConfigurationError, match="--replace"):
        run("report", tmp_path / "models" / "toy", "--out", out)
    with pytest.raises(ConfigurationError, match=r"\.html"):
        run("report", tmp_path / "models" / "toy", "--out", tmp_path / "toy.pdf")
    (tmp_path / "models" / "toy" / "card.md").write_text("another card")
    with pytest.raises(CertificateError):
        run("report", tmp_path / "models" / "toy", "--out", out, "--replace")
