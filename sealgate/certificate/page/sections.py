"""The parts of the page, from the statement in plain words down to the digests.

Long because each part says in words what its picture or table means; there is no logic beyond choosing words.
Trusts: a verified bundle and the facts computed from it. Never: calls a number good or bad.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from sealgate.certificate.attack_words import FALSE_POSITIVE_RATES, rate_text, unit_word
from sealgate.certificate.bundle import VerifiedBundle
from sealgate.certificate.decimals import MICRO, micro_text
from sealgate.certificate.derivation import derivation_words, measured_words
from sealgate.certificate.measured import ACCURACY, quality_text
from sealgate.certificate.mechanism_words import mechanism_lines
from sealgate.certificate.mechanisms import DpSgd, name_of
from sealgate.certificate.page.charts import Axis, Frame, picture, steps_to
from sealgate.certificate.page.facts import Facts, Point, curve_points, points_of
from sealgate.certificate.page.markup import Markup, element, joined
from sealgate.certificate.schema import Certificate

_LEAST_FPR = 1e-4


def whole(share: float) -> str:
    """A share in whole per cent."""
    return f"{share * 100:.0f} %"


def figure(drawn: Markup, *, name: str) -> Markup:
    """A picture that scrolls by itself where there is no room for it."""
    return element("div", drawn, class_="figure", tabindex="0", role="region", aria_label=name)


def table(headings: Sequence[object], rows: Iterable[Sequence[object]], *, caption: str) -> Markup:
    """A table whose first column heads its rows; it may be scrolled sideways by itself on a narrow screen."""
    body = [
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])) for row in rows
    ]
    inner = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *(element("th", heading, scope="col") for heading in headings))),
        element("tbody", *body),
    )
    return element("div", inner, class_="wide", tabindex="0", role="region", aria_label=caption)


def section(heading: str, *parts: object) -> Markup:
    """One part of the page."""
    name = heading.lower().replace(" ", "-")
    return element("section", element("h2", heading, id=name), *parts, aria_labelledby=name)


def head(bundle: VerifiedBundle) -> Markup:
    """Name, what it is for, and the four figures that are asked for first."""
    manifest, certificate = bundle.manifest, bundle.certificate
    audit = certificate.audit
    tiles = [
        ("Privacy", f"epsilon {certificate.epsilon_micro / MICRO:.2f}", f"at delta {certificate.delta}"),
        (
            "Audit",
            "none" if audit is None else f"{len(audit.probes)} probes held",
            "nobody attacked the trainer" if audit is None else "the trainer was attacked before signing",
        ),
        ("Signed by", bundle.publisher, f"on {certificate.issued}"),
    ]
    if certificate.measured:
        one = certificate.measured[0]
        label = "Accuracy" if one.measure == ACCURACY else one.measure
        value = quality_text(one.measure, one.value_micro / MICRO)
        tiles.insert(0, (label, value, f"on {one.rows} rows it never saw"))
    shown = [
        element("div", element("dt", name), element("dd", value), element("dd", more, class_="soft"))
        for name, value, more in tiles
    ]
    return element(
        "header",
        element("p", "Private training, certified", class_="kicker"),
        element("h1", manifest.name, " ", element("span", manifest.version, class_="soft")),
        element("p", manifest.description, class_="lead"),
        element("dl", *shown, class_="tiles"),
    )


def plain_words(bundle: VerifiedBundle, facts: Facts) -> Markup:
    """What the certificate means, for who will never read another section."""
    certificate = bundle.certificate
    unit = unit_word(certificate.unit)
    best = facts.curve.tpr_at(0.01)
    return section(
        "In plain words",
        element(
            "p",
            f"This model was trained so that it would have come out nearly the same with or without any one {unit} of "
            "its data. How nearly is what epsilon says: the smaller, the closer.",
        ),
        _attacker(unit, best),
        element(
            "p",
            "It is about the training data only. What it does not cover stands further down, and every section says "
            "how its figures came about.",
        ),
    )


def _attacker(unit: str, best: float) -> Markup:
    return element(
        "p",
        f"Suppose somebody knows everything, every other {unit}, how the model was made and its weights, and wants to "
        f"know only whether one {unit} was in the data. If they accept to be wrong about one in a hundred of those who "
        "were not, they find at most ",
        element("strong", rate_text(best)),
        " of those who were. Guessing finds 1.0 %. This holds whatever they try, now or later.",
    )


def _made_from(certificate: Certificate) -> list[Markup]:
    """For a model that is another's weights in fewer bits: what it was made from, and how well that one did."""
    derived = certificate.derived
    if derived is None:
        return []
    words = [f"Made from another model: {derivation_words(derived)}.", *measured_words(derived)]
    return [element("p", " ".join(words), class_="note")]


def accuracy(certificate: Certificate) -> Markup:
    """Quality against epsilon; one point, or a sweep."""
    points = points_of(certificate.measured)
    if not points:
        return section(
            "Accuracy", element("p", "The certificate states no measured quality."), *_made_from(certificate)
        )
    measure = certificate.measured[0].measure
    words = [
        element(
            "p",
            f"Measured on {points[0].rows} rows that were set aside before training. The bars are 95 % intervals: how "
            "far other rows of the same kind could move the figure by chance.",
        )
    ]
    words += _made_from(certificate)
    if len(certificate.measured) > 1:
        others = len(certificate.measured) - 1
        together = math.ceil(sum(one.epsilon_micro for one in certificate.measured[1:]) / MICRO * 10) / 10
        words.append(
            element(
                "p",
                f"The {others} other models were trained for this picture with fresh randomness, measured and thrown "
                "away. The weights' epsilon does not cover them: whoever sees these figures too has seen releases that "
                f"cost the training data up to epsilon {together:g} more, at {others} times delta.",
                class_="note",
            )
        )
    rows = [
        (
            f"{point.epsilon:.2f}" + (" (this model)" if point.ours is not None else ""),
            quality_text(measure, point.mean),
            f"{quality_text(measure, point.low)} to {quality_text(measure, point.high)}",
            ", ".join(quality_text(measure, run) for run in point.runs),
        )
        for point in points
    ]
    label = "Accuracy" if measure == ACCURACY else measure
    return section(
        "Accuracy against privacy",
        *words,
        figure(_accuracy_picture(points, label=label, measure=measure), name=f"Picture: {label} against epsilon"),
        table(("Epsilon", label, "95 % interval", "Each run"), rows, caption=f"{label} at each epsilon"),
    )


def _accuracy_picture(points: list[Point], *, label: str, measure: str) -> Markup:
    low = min(point.low for point in points)
    ticks = [one / 20 for one in range(max(-20, math.floor(low * 20)), 21)]
    ticks = ticks[-1 :: -max(1, -(-(len(ticks) - 1) // 6))][::-1]  # at most seven, the last of them one
    if ticks[0] > low:
        ticks.insert(0, max(-1.0, 2 * ticks[0] - ticks[1]))
    frame = Frame(
        across=Axis(
            name="epsilon (smaller is more private)",
            low=0.0,
            high=steps_to(points[-1].epsilon * 1.05)[-1],
            ticks=steps_to(points[-1].epsilon * 1.05),
            label=lambda value: f"{value:g}",
        ),
        up=Axis(name=label, low=ticks[0], high=1.0, ticks=ticks, label=whole if measure == ACCURACY else str),
    )
    shapes = []
    if len(points) > 1:
        shapes.append(frame.line([(point.epsilon, point.mean) for point in points], kind="line"))
    for point in points:
        shapes.append(frame.whisker(point.epsilon, point.low, point.high))
        shapes += [frame.dot(point.epsilon, run, kind="run", radius=3) for run in point.runs if len(point.runs) > 1]
        shapes.append(frame.dot(point.epsilon, point.mean))
    for point in points:
        if point.ours is not None:
            shapes.append(frame.dot(point.epsilon, point.ours, kind="dot ours"))
            shapes.append(frame.note(point.epsilon, point.ours, "this model", anchor="start", lift=16.0))
    told = "; ".join(f"{quality_text(measure, point.mean)} at epsilon {point.epsilon:.2f}" for point in points)
    return picture(frame, *shapes, title=f"{label} against epsilon", description=f"{label}: {told}.", name="accuracy")


def over_steps(certificate: Certificate, facts: Facts) -> Markup:
    """How epsilon was spent."""
    points = facts.over_steps
    total = certificate.epsilon_micro / MICRO
    if not points:
        return section(
            "Privacy over steps",
            element(
                "p",
                f"The mechanism {name_of(certificate.mechanism)} as it was used here is accounted as a whole: epsilon "
                f"{total:.2f} is spent at once, and there are no steps to draw.",
            ),
        )
    line = [(0.0, facts.at_start), *((float(step), epsilon) for step, epsilon in points)]
    steps, highest = steps_to(points[-1][0]), steps_to(max(total, points[-1][1]))
    frame = Frame(
        across=Axis(name="steps", low=0.0, high=steps[-1], ticks=steps, label=lambda value: f"{value:g}"),
        up=Axis(name="epsilon", low=0.0, high=highest[-1], ticks=highest, label=lambda value: f"{value:g}"),
    )
    drawn = picture(
        frame,
        frame.area(line),
        frame.line(line, kind="line"),
        frame.dot(*line[-1], kind="dot ours"),
        frame.note(*line[-1], f"epsilon {total:.2f}", anchor="end"),
        title="Epsilon after each step",
        description=f"Epsilon grows from {facts.at_start:.2f} to {points[-1][1]:.2f} over {points[-1][0]} steps.",
        name="steps",
    )
    rows = [(step, f"{epsilon:.3f}") for step, epsilon in points[:: max(1, len(points) // 6)] + points[-1:]]
    return section(
        "Privacy over steps",
        element(
            "p",
            "Each step looks at a random part of the data and adds noise to what it learned, so each costs a little. "
            "The figure after so many steps follows from public constants, by privacy-loss distributions.",
        ),
        figure(drawn, name="Picture: epsilon over steps"),
        table(("Steps", "Epsilon"), dict.fromkeys(rows), caption="Epsilon after so many steps"),
    )


def attacks(certificate: Certificate, facts: Facts) -> Markup:
    """The trade-off curve."""
    unit, curve = unit_word(certificate.unit), facts.curve
    rates = (_LEAST_FPR, 0.001, 0.01, 0.1, 1.0)
    frame = Frame(
        across=Axis(
            name=f"wrongly accused, of the {unit}s that were not in the data",
            low=_LEAST_FPR,
            high=1.0,
            ticks=rates,
            label=lambda value: f"{value * 100:g} %",
            logarithmic=True,
        ),
        up=Axis(
            name="found, at most",
            low=0.0,
            high=1.0,
            ticks=[index / 5 for index in range(6)],
            label=lambda value: f"{value * 100:.0f} %",
        ),
    )
    points = curve_points(curve, least=_LEAST_FPR)
    shapes = [
        frame.area(points),
        frame.line(points, kind="line"),
        frame.line([(rate, rate) for rate, _ in points], kind="guess"),
        frame.note(0.3, 0.3, "guessing", lift=22.0),
        *(frame.dot(rate, curve.tpr_at(rate)) for rate in FALSE_POSITIVE_RATES),
    ]
    told = "; ".join(f"{rate_text(curve.tpr_at(rate))} at {rate_text(rate)}" for rate in FALSE_POSITIVE_RATES)
    drawn = picture(
        frame,
        *shapes,
        title="What the best attack can find",
        description=f"Found at most, at each rate of wrong accusations: {told}.",
        name="attacks",
    )
    rows = [
        (
            rate_text(rate),
            rate_text(curve.tpr_at(rate)),
            rate_text(rate),
            rate_text(curve.precision_at(rate, prior=0.5)),
        )
        for rate in FALSE_POSITIVE_RATES
    ]
    return section(
        "What an attacker can find",
        element(
            "p",
            f"No test of the weights, however clever, tells {unit}s that were in the data from {unit}s that were not "
            "better than this line. It is a limit, not a forecast: known attacks stay far below it.",
        ),
        figure(drawn, name="Picture: what an attack can find"),
        table(
            ("Wrongly accused", "Found, at most", "Found by guessing", "Sure of an accusation, at most"),
            rows,
            caption=f"The last column is for an attacker who asks about {unit}s of which half were in the data",
        ),
    )


def audit(certificate: Certificate) -> Markup:
    """What an attack on the trainer found."""
    found = certificate.audit
    if found is None:
        return section(
            "The audit",
            element("p", "There was none. Nobody attacked the trainer before this was signed.", class_="note"),
        )
    lower, claim = found.epsilon_lower_micro / MICRO, certificate.epsilon_micro / MICRO
    high = steps_to(claim * 1.1)
    frame = Frame(
        across=Axis(name="epsilon", low=0.0, high=high[-1], ticks=high, label=lambda value: f"{value:g}"),
        up=Axis(name="", low=0.0, high=1.0, ticks=(), label=str),
        height=174.0,
    )
    shapes = [
        frame.line([(0.0, 0.5), (high[-1], 0.5)], kind="guess"),
        frame.line([(lower, 0.5), (claim, 0.5)], kind="span"),
        frame.dot(lower, 0.5, kind="dot lower", radius=7),
        frame.dot(claim, 0.5, kind="dot ours", radius=7),
        frame.note(lower, 0.5, f"shown: at least {lower:.2f}", lift=-22.0, anchor="start"),
        frame.note(claim, 0.5, f"claimed: at most {claim:.2f}", lift=32.0, anchor="end"),
    ]
    drawn = picture(
        frame,
        *shapes,
        title="What the attack shows, against what is claimed",
        description=f"The attack shows an epsilon of at least {lower:.2f}; the certificate claims at most {claim:.2f}.",
        name="audit",
    )
    rows = [(probe.name, element("span", probe.verdict, class_="held"), probe.found) for probe in found.probes]
    return section(
        "The audit",
        element(
            "p",
            f"Before the rows were read, the trainer was attacked with this run's own constants on made-up rows: "
            f"{found.canaries} canaries over {found.steps} steps, by an attacker who sees every step. With confidence "
            f"{micro_text(found.confidence_ppm)} the attack shows an epsilon of at least {lower:.2f}. Had it shown "
            "more than the claim, or had a probe found another mechanism, nothing would have been signed.",
        ),
        figure(drawn, name="Picture: the audit"),
        table(("Probe", "Verdict", "What it found"), rows, caption=f"The {len(rows)} probes ({found.method})"),
    )


def making(bundle: VerifiedBundle) -> Markup:
    """Data, masking, choices and mechanism."""
    certificate, manifest = bundle.certificate, bundle.manifest
    preprocessing, selection = certificate.preprocessing, certificate.selection
    statistics = (
        "public constants, written down before anybody saw the data"
        if preprocessing.statistics == "public-constants"
        else f"private statistics that cost epsilon {micro_text(preprocessing.epsilon_micro)}, included above: "
        + ", ".join(part.what for part in preprocessing.parts)
    )
    rows: list[tuple[object, object]] = [
        ("Model", f"{manifest.family}; sensitivity {manifest.sensitivity}; for {', '.join(manifest.purposes)}"),
        ("Data", f"about {certificate.dataset.public_population} rows (public figure); {certificate.dataset.split}"),
        ("Ranges and scales", statistics),
        (
            "Before training",
            f"{certificate.initialisation.method}; pretraining: {certificate.initialisation.pretraining}",
        ),
        ("Hyper-parameters", _selection_words(certificate)),
        (
            "Mechanism",
            joined([name_of(certificate.mechanism), ": ", "; ".join(mechanism_lines(certificate.mechanism))]),
        ),
        ("Unit of privacy", f"one {unit_word(certificate.unit)}, added to or removed from the data"),
        ("If one is replaced", f"epsilon {micro_text(certificate.epsilon_replace_one_micro)}"),
    ]
    rows += _masking_rows(certificate)
    if isinstance(certificate.mechanism, DpSgd):
        sampling = certificate.mechanism.sampling
        rows.append(("Steps", f"{sampling.steps_executed} of {sampling.steps_declared}"))
    rows.append(("Note", selection.note))
    return section("How it was made", table(("What", "How"), rows, caption="As the publisher states it, signed"))


def _masking_rows(certificate: Certificate) -> list[tuple[object, object]]:
    """What was done to columns before anything else saw them, as far as the certificate says."""
    masked = certificate.preprocessing.masked
    if not masked:
        return [("Masking", "none is stated")]
    told = (f"{one.column}: {one.action}{f' ({one.detail})' if one.detail else ''}" for one in masked)
    return [("Masking", "; ".join(told))]


def _selection_words(certificate: Certificate) -> str:
    selection = certificate.selection
    if selection.search is not None:
        search = selection.search
        return (
            f"the best of a random number of runs on the private rows "
            f"({micro_text(search.trials_mean_micro)} on average, "
            f"{search.choices} choices, scored by noisy {search.score}); its share of epsilon is "
            f"{micro_text(selection.epsilon_micro)}"
        )
    words = {"fixed": "fixed beforehand; cost nothing", "public-data": "chosen on public data; cost nothing"}
    return words.get(selection.how, selection.how)


def limits(certificate: Certificate) -> Markup:
    """What was released besides, and what is not protected."""
    releases = [
        (release.what, release.where, "covered by epsilon" if release.covered else "not covered")
        for release in certificate.releases
    ]
    return section(
        "What epsilon does not cover",
        element("ul", *(element("li", words) for words in certificate.not_protected)),
        table(
            ("Also released", "Where", "Epsilon"), releases, caption="Everything besides the weights that people saw"
        ),
    )


def recomputation(bundle: VerifiedBundle, facts: Facts) -> Markup:
    """How to come to the same figure."""
    certificate = bundle.certificate
    packages = ", ".join(f"{name} {version}" for name, version in sorted(certificate.environment.packages.items()))
    digests = [
        ("weights", bundle.weights_digest),
        ("certificate", bundle.certificate_digest),
        ("training code", certificate.environment.code_digest),
        ("commitment to the rows", certificate.dataset.commitment),
    ]
    rows = [(name, element("code", digest)) for name, digest in digests]
    return section(
        "Compute it again",
        element(
            "p",
            "The lines below were computed when this page was made, after the signatures were verified. ",
            element("code", "sealgate models verify"),
            " on the bundle prints them anew; so can any accountant that is given these constants.",
        ),
        table(("Step", "Value"), facts.lines, caption="From the constants to epsilon"),
        table(("What", "SHA-256"), rows, caption="Digests"),
        element("p", f"Made with Python {certificate.environment.python}, {packages}.", class_="soft"),
    )
