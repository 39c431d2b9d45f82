"""The console in a real Chromium: verification that can fail, a policy that is never violated, access for everybody."""

from __future__ import annotations

import base64
import json
import re
from hashlib import sha256
from importlib import resources

import pytest

from gateway.console import presentation
from sealgate.transparency.notes import Checkpoint, NoteSigner, sign_checkpoint
from tests.gateway.conftest import LOG, plain_answer
from tests.gateway.console.conftest import PAGES, SIGNER
from tests.peers.components import require_accessibility_checker

RECORD = "/console/records/5"
ANOTHER = NoteSigner.from_seed(LOG, b"\x03" * 32)
EVERY = (*PAGES, RECORD, "/console/records/51", "/console/records/52", "/console/sign-in", "/console/records/nothing")


def verify(window, key=SIGNER.vkey):
    window.page.fill("#vkey", key)
    window.page.click("#verify-form button")
    window.page.wait_for_selector("#verdict p")
    return window.page.inner_text("#verdict"), window.page.inner_text("#steps")


def changing(window, path, change):
    """The page at `path` comes changed, as a lying server would send it."""

    def answer(route):
        response = route.fetch()
        route.fulfill(response=response, body=change(response.text()))

    window.page.route(f"**{path}", answer)
    return window.open(path)


# Verify in this browser ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 5, 51, 52])
def test_a_record_is_verified(browse, number):
    window = browse()
    window.open(f"/console/records/{number}")
    verdict, steps = verify(window)
    assert re.fullmatch(rf"Verified: record {number} \([a-z.]+\) stands in the log that {LOG} signed\.", verdict)
    assert "What this page shows is what the record says." in steps
    boxes = window.page.locator(".path .box:not(.sibling)")
    assert boxes.count() == window.page.locator(".path .box.ok").count() > 2
    assert window.page.locator("dd.ok").count() == window.page.locator("dd[data-field]").count() > 8
    window.require_quiet()


def data(name, change):
    """Change one of the values that the script reads."""

    def changed(text):
        found = re.search(rf'data-{name}="([^"]*)"', text)
        return text.replace(found[0], f'data-{name}="{change(found[1])}"')

    return changed


def flipped(text):
    raw = bytearray(base64.b64decode(text))
    raw[len(raw) // 2] ^= 1
    return base64.b64encode(raw).decode()


def resigned(text):
    """The same size under a root of somebody's choosing, with the old signature."""
    origin, size, _, *rest = base64.b64decode(text).decode().split("\n")
    root = base64.b64encode(b"\x05" * 32).decode()
    return base64.b64encode("\n".join([origin, size, root, *rest]).encode()).decode()


def missigned(text):
    """The signature of the log's own key is another one."""
    lines = base64.b64decode(text).decode().split("\n")
    lines[4] = lines[4][:-8] + "AAAAAAA="
    return base64.b64encode("\n".join(lines).encode()).decode()


LIES = {
    "the record's bytes": data("leaf", flipped),
    "a hash of the path": data("proof", lambda text: " ".join([flipped(text.split()[0]), *text.split()[1:]])),
    "a path that is too short": data("proof", lambda text: " ".join(text.split()[1:])),
    "a path that is too long": data("proof", lambda text: text + " " + text.split()[0]),
    "a path of short hashes": data("proof", lambda text: " ".join(["AAAA", *text.split()[1:]])),
    "no path": data("proof", lambda text: ""),
    "the place in the log": data("index", lambda text: str(int(text) + 1)),
    "a place beyond the log": data("index", lambda text: "99999"),
    "a negative place": data("index", lambda text: "-1"),
    "the size": data("size", lambda text: str(int(text) - 1)),
    "another root": data("note", resigned),
    "the signature": data("note", missigned),
    "no checkpoint": data("note", lambda text: ""),
    "a word on the page": lambda text: re.sub(r'(data-field="tenant"[^>]*>)[^<]*', r"\1nobody", text),
    "a time on the page": lambda text: re.sub(r'(data-field="ts_us"[^>]*>)....', r"\g<1>1999", text),
    "a number on the page": lambda text: re.sub(r'(data-field="units"[^>]*>)[^<]*', r"\g<1>300", text),
    "a list on the page": lambda text: re.sub(r'(data-field="policy_ids"[^>]*>)[^<]*', r"\g<1>nothing", text),
    "a detail on the page": lambda text: text.replace(
        '<h2 id="group-1">', '<i data-field="detail.x">y</i><h2 id="group-1">'
    ),
    "a field that is left out": lambda text: re.sub(r'<div>[^/]*</dt><dd[^>]*data-field="actor".*?</div>', "", text),
    "a field beside the checked ones": lambda text: text.replace('data-field="actor"', ""),
    "a field that nobody can see": lambda text: re.sub(r'<dd([^>]*data-field="actor")', r"<dd hidden\1", text),
    "a field that is next to nothing": lambda text: re.sub(
        r'<dd( class="hex")? data-field="actor"', '<dd class="hidden" data-field="actor"', text
    ),
    "a hash in the picture": lambda text: re.sub(r'(class="hash">)[0-9a-f]{10}', r"\g<1>0123456789", text, count=1),
    "a neighbour's hash in the picture": lambda text: re.sub(
        r'(data-role="sibling".*?class="hash">)[0-9a-f]{10}', r"\g<1>0123456789", text, count=1, flags=re.DOTALL
    ),
    "a hash in the list": lambda text: re.sub(r"(: <code>)[0-9a-f]{4}", r"\g<1>0000", text),
    "a step that is not drawn": lambda text: re.sub(
        r'<g class="box sibling".*?</g>', "", text, count=1, flags=re.DOTALL
    ),
    "a field under another's name": lambda text: text.replace("<dt>purpose</dt>", "<dt>tenant</dt>"),
    "the number above the record": lambda text: re.sub(r'(<h1>.*class="number">)\d+', r"\g<1>4", text),
}
COUNTED = "/console/records/49"
"""A record with two details."""


@pytest.mark.parametrize("lie", LIES)
def test_a_page_that_lies_is_not_verified(browse, lie):
    window = browse()
    before = window.open(RECORD).text()
    assert LIES[lie](before) != before
    changing(window, RECORD, LIES[lie])
    verdict, _ = verify(window)
    assert verdict == "Not verified."
    assert window.page.locator("#verdict .ok").count() == 0


@pytest.mark.parametrize(
    "lie",
    [
        lambda text: re.sub(r'<div>[^/]*</dt><dd[^>]*data-field="detail.source".*?</div>', "", text),
        lambda text: re.sub(r'(data-field="detail.source"[^>]*>)[^<]*', r"\1nothing", text),
        lambda text: text.replace('data-field="detail.source"', 'data-field="detail.constructor"'),
    ],
    ids=["left out", "changed", "of every object"],
)
def test_the_details_of_a_record_are_compared_one_by_one(browse, lie):
    window = browse()
    before = window.open(COUNTED).text()
    assert lie(before) != before
    assert verify(window)[0].startswith("Verified")
    changing(window, COUNTED, lie)
    assert verify(window)[0] == "Not verified."


def test_a_record_has_no_place_before_the_first(browse):
    """In a tree of two, the path of record 0 would do for a record -1, and for 0x0."""
    window = browse()
    whole = window.open("/console/records/0").text()
    leaf = base64.b64decode(re.search(r'data-leaf="([^"]*)"', whole)[1])
    beside = sha256(b"\x00beside").digest()
    hashed = sha256(b"\x00" + leaf).digest()
    root = sha256(b"\x01" + hashed + beside).digest()
    boxes = (("leaf", 0, hashed.hex()), ("sibling", 1, beside.hex()), ("root", 1, root.hex()))
    drawn = "".join(
        f'<g class="box" data-role="{role}" data-step="{step}"><text class="hash">{digest[:10]}</text></g>'
        for role, step, digest in boxes
    )
    listed = "".join(f"<li><code>{digest}</code></li>" for _, _, digest in boxes)
    note = base64.b64encode(sign_checkpoint(Checkpoint(LOG, 2, root), SIGNER)).decode()
    proof = base64.b64encode(beside).decode()
    for index, verdict in (("0", "Verified"), ("-1", "Not verified."), ("0x0", "Not verified.")):
        changes = {"index": index, "size": "2", "note": note, "proof": proof}

        def small(text, changes=changes, index=index):
            for name, value in changes.items():
                text = data(name, lambda _, value=value: value)(text)
            text = re.sub(r'(<svg class="path"[^>]*>).*?(?=</svg>)', rf"\1{drawn}", text, flags=re.DOTALL)
            text = re.sub(r'(<ol class="hashes">).*?(?=</ol>)', rf"\1{listed}", text, flags=re.DOTALL)
            return text.replace('class="number">0</span></h1>', f'class="number">{index}</span></h1>')

        window = browse()
        changing(window, "/console/records/0", small)
        assert verify(window)[0].startswith(verdict)


def test_the_key_is_the_auditors_own_and_no_page_fills_it_in(browse):
    window = browse()
    theirs = ANOTHER.vkey
    changing(window, RECORD, lambda text: text.replace('id="vkey"', f'id="vkey" value="{theirs}"'))
    assert window.page.input_value("#vkey") == ""


def test_the_script_calls_fields_what_the_page_calls_them():
    script = (resources.files("gateway.console") / "static" / "verify.js").read_text()
    table = script.split("const LABELS = ")[1].split("}));")[0]
    found = re.findall(r"^  (\w+): (?:'(.*)'|\"(.*)\"),$", table, re.MULTILINE)
    assert {name: one or other for name, one, other in found} == presentation._LABELS


@pytest.mark.parametrize(
    ("key", "why"),
    [
        (ANOTHER.vkey, "This key did not sign the checkpoint."),
        (NoteSigner.from_seed("other/log", b"\x01" * 32).vkey, "the key is of other/log"),
        (SIGNER.vkey.replace("test/log+", "tent/log+"), "damaged"),
        (SIGNER.vkey[:-4], "Ed25519"),
        ("", "NAME+KEYID+BASE64"),
        ("<script>", "NAME+KEYID+BASE64"),
    ],
)
def test_another_key_does_not_verify(browse, key, why):
    window = browse()
    window.open(RECORD)
    verdict, steps = verify(window, key)
    assert verdict == "Not verified."
    assert why in steps


def test_a_pinned_key_is_remembered_and_so_is_the_largest_tree(browse):
    window = browse()
    window.open(RECORD)
    window.page.check("#pin")
    assert verify(window)[0].startswith("Verified")
    window.open("/console/records/7")
    assert window.page.input_value("#vkey") == SIGNER.vkey
    verdict, steps = verify(window)
    assert verdict.startswith("Verified")
    assert "Not smaller than what this browser saw before" in steps

    stored = window.page.evaluate("JSON.stringify(localStorage)")
    name = next(name for name in json.loads(stored) if ".seen." in name)
    seen = json.loads(json.loads(stored)[name])
    for change, said in (({"root": "x" * 43 + "="}, "another tree"), ({"size": "9999"}, "a larger checkpoint")):
        window.page.evaluate("([name, value]) => localStorage.setItem(name, value)", [name, json.dumps(seen | change)])
        assert said in verify(window)[1]
    window.page.uncheck("#pin")
    verify(window)
    window.open(RECORD)
    assert window.page.input_value("#vkey") == ""


def test_a_shard_of_the_log_belongs_to_the_logs_key(browse):
    """A checkpoint of NAME/2030h1, signed by the key under that name, is taken under the key of NAME; of NAME/x not."""

    def renamed(origin):
        def change(text):
            found = re.search(r'data-note="([^"]*)"', text)
            _, size, root, *_ = base64.b64decode(found[1]).decode().split("\n")
            checkpoint = Checkpoint(origin, int(size), base64.b64decode(root))
            note = sign_checkpoint(checkpoint, NoteSigner.from_seed(origin, b"\x01" * 32))
            return text.replace(found[1], base64.b64encode(note).decode())

        return change

    for origin, step in ((f"{LOG}/2030h1", "The record names another log"), (f"{LOG}/x", "the key is of")):
        window = browse()
        changing(window, RECORD, renamed(origin))
        verdict, steps = verify(window)
        assert verdict == "Not verified."  # the record itself is of LOG
        assert step in steps


# What a page may do --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EVERY)
def test_pages_violate_nothing_and_ask_nobody_else(browse, path):
    window = browse()
    status = window.open(path).status
    assert window.page.title() != "broken"
    if status == 200:
        window.require_quiet()
    assert window.elsewhere == []
    assert [text for text in window.said if "Content Security Policy" in text] == []


def test_a_violation_would_be_noticed(browse):
    window = browse()
    changing(
        window, "/console", lambda text: text.replace("</main>", "<script>document.title='broken'</script></main>")
    )
    assert window.page.title() != "broken"
    assert any("Content Security Policy" in text for text in window.said)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_everybody_can_use_it(browse, scheme, width):
    """axe finds nothing, and no page scrolls sideways."""
    checker = require_accessibility_checker()
    window = browse(color_scheme=scheme, viewport={"width": width, "height": 800})
    found = {}
    for path in EVERY:
        window.open(path)
        if path == RECORD:
            assert verify(window)[0].startswith("Verified")
            for summary in window.page.locator("summary").all():
                summary.click()
        window.page.evaluate(checker)
        result = window.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        found[path] = [
            (item["id"], node["target"], node.get("failureSummary"))
            for item in result["violations"]
            for node in item["nodes"]
        ]
        assert window.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{path} scrolls sideways"
    assert {path: faults for path, faults in found.items() if faults} == {}


def test_the_keyboard_is_enough(browse):
    window = browse()
    window.open("/console")
    window.page.keyboard.press("Tab")
    assert window.page.evaluate("document.activeElement.textContent") == "Skip to the content"
    window.page.keyboard.press("Enter")
    assert window.page.evaluate("document.activeElement.id") == "main"
    window.open(RECORD)
    window.page.focus("#vkey")
    window.page.keyboard.type(SIGNER.vkey)
    window.page.keyboard.press("Enter")
    window.page.wait_for_selector("#verdict .ok")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_chart_is_a_table_too_by_keyboard(browse, scheme):
    """What a picture says by colour and height stands in words, each day a link; axe finds nothing in it."""
    checker = require_accessibility_checker()
    window = browse(color_scheme=scheme)
    window.open("/console")
    picture = window.page.get_by_role("img", name=re.compile("Requests, .* answered, .* Most on "))
    assert picture.count() == 1
    heights = [one.bounding_box()["height"] for one in picture.locator("rect").all()]
    assert len(heights) >= 4
    assert min(heights) > 0
    window.page.focus(".chart summary")
    window.page.keyboard.press("Enter")
    figures = window.page.get_by_role("region", name="The same as a table").get_by_role("table")
    assert figures.get_by_role("columnheader").all_inner_texts() == [
        *("Day (UTC)", "Answered", "Denied", "Failed or cut off", "Not authenticated")
    ]
    window.page.evaluate(checker)
    result = window.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert [item["id"] for item in result["violations"]] == []
    figures.get_by_role("rowheader").first.get_by_role("link").press("Enter")
    window.page.wait_for_url(re.compile("from=.*to="))
    window.require_quiet()


def test_older_records_are_added_to_the_list(browse):
    window = browse()
    window.open("/console")
    before = window.page.locator(".rows tbody td.num").count()
    window.page.click("text=Older records")
    # A function to wait for would be eval: it is forbidden.
    window.page.locator(".rows tbody td.num").nth(before).wait_for()
    numbers = [int(text[1:]) for text in window.page.locator(".rows tbody td.num").all_inner_texts()]
    assert numbers == list(range(max(numbers), -1, -1))
    window.require_quiet()


def test_a_refusal_is_shown_where_the_records_should_have_come(browse, consoled):
    from sealgate.protocol import frames

    window = browse()
    window.open("/console")
    consoled.host.script = lambda frame, body: (frames.Refused(status=503, code="unavailable", retry_after_s=5), b"")
    window.page.click("text=Older records")
    window.page.wait_for_selector("h1:has-text('Unavailable')")
    consoled.host.script = plain_answer


def test_without_scripts_everything_but_the_check_works(browse):
    window = browse(java_script_enabled=False)
    window.open("/console")
    window.page.click("text=Denied >> nth=0")
    assert "kind=inference.denied" in window.page.url
    window.open("/console")
    window.page.click("text=Older records")
    assert "cursor=" in window.page.url
    window.page.locator("td.num a").first.click()
    assert "needs JavaScript" in window.page.inner_text("#verify")
    assert window.page.locator(".path .box").count() > 3


def test_evidence_is_one_click(browse):
    window = browse()
    window.open(RECORD)
    with window.page.expect_download() as download:
        window.page.click("text=Download evidence bundle")
    assert download.value.suggested_filename == "audit-5-5.zip"
