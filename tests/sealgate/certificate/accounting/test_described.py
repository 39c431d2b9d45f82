"""Whole certificates of every mechanism: accepted with their own account, refused with one thing wrong."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import msgspec
import pytest

from sealgate.certificate.claims import check_claims
from sealgate.certificate.mechanisms import AdaSsp, GapAggregation, Noise, ObjectivePerturbation
from sealgate.certificate.schema import Accounting, Masked, Preprocessing, Search, Selection, Statistic
from sealgate.errors import CertificateError
from tests.sealgate.certificate.conftest import a_certificate


def noise(sigma_micro: int, **changes: Any) -> Noise:
    base: dict[str, Any] = {
        "sigma_micro": sigma_micro,
        "source": "os-csprng/aes-256-ctr",
        "seed": "fresh",
        "transform": "box-muller-4",
        "arithmetic": "float64-continuous",
    }
    return Noise(**{**base, **changes})


ADASSP = AdaSsp(
    row_norm_micro=2_000_000,
    target_bound_micro=1_000_000,
    eigenvalue=noise(20_000_000),
    gram=noise(6_000_000),
    moments=noise(8_000_000),
)
OBJECTIVE = ObjectivePerturbation(
    loss="logistic",
    row_norm_micro=1_000_000,
    regularisation_micro=2_000_000,
    gradient_tolerance="0.00000001",
    noise=noise(4_000_000),
    output=noise(10_000),
)
SGD = a_certificate().mechanism
GAP = GapAggregation(
    hops=2,
    max_degree=10,
    noise=noise(30_000_000),
    encoder=SGD,
    classifier=SGD,
    serving="noised-aggregates",
)
UNITS = {AdaSsp: "example", ObjectivePerturbation: "example", GapAggregation: "edge"}


def stated(mechanism, **changes):
    """A certificate of this mechanism that states what it costs."""
    certificate = msgspec.structs.replace(
        a_certificate(),
        mechanism=mechanism,
        unit=changes.pop("unit", UNITS.get(type(mechanism), "example")),
        epsilon_micro=50_000_000,
        epsilon_replace_one_micro=90_000_000,
        weights_digest="a" * 64,
        manifest_digest="b" * 64,
        accounting=msgspec.structs.replace(a_certificate().accounting, second_epsilon_micro=50_000_000),
    )
    return msgspec.structs.replace(certificate, **changes)


def figures(certificate):
    return check_claims(certificate).epsilon()


def code_of(certificate) -> str:
    with pytest.raises(CertificateError) as caught:
        check_claims(certificate).epsilon()
    return caught.value.code


@pytest.mark.parametrize("mechanism", [ADASSP, OBJECTIVE, GAP], ids=["adassp", "objective", "gap"])
def test_each_mechanism_has_an_account(mechanism):
    account = check_claims(stated(mechanism))
    found = account.epsilon()
    assert 0 < found.add_remove_micro < found.replace_one_micro
    assert account.delta in account.words()


def test_nodes_cost_more_than_edges_and_need_private_training():
    edge, node = figures(stated(GAP)), figures(stated(GAP, unit="node"))
    assert node.add_remove_micro > edge.add_remove_micro
    assert code_of(stated(msgspec.structs.replace(GAP, encoder=None), unit="node")) == "mechanism"
    served = msgspec.structs.replace(GAP, serving="nothing")
    assert figures(stated(served, unit="node")).add_remove_micro < node.add_remove_micro


def test_sums_of_bounded_norm_cost_a_node_less_and_an_edge_the_same():
    def bounded(norm_micro: int, unit: str):
        return stated(msgspec.structs.replace(GAP, sum_norm_micro=norm_micro), unit=unit)

    assert check_claims(bounded(3_000_000, "node")).mu_squared == 2 * (10 + 9) / Fraction(30) ** 2
    assert check_claims(bounded(0, "node")).mu_squared == 2 * (10 + 100) / Fraction(30) ** 2
    assert check_claims(bounded(11_000_000, "node")).mu_squared == check_claims(bounded(0, "node")).mu_squared
    assert check_claims(bounded(3_000_000, "edge")).mu_squared == 2 * 2 / Fraction(30) ** 2
    assert code_of(bounded(-1, "node")) == "parameters-out-of-range"


def test_persons_are_clipped_as_persons():
    clipping = msgspec.structs.replace(SGD.clipping, kind="per-user-flat", rows_per_unit=8)
    persons = msgspec.structs.replace(SGD, clipping=clipping)
    assert figures(stated(persons, unit="user")) == figures(stated(SGD))
    assert code_of(stated(SGD, unit="user")) == "mechanism"
    assert code_of(stated(persons)) == "mechanism"


def test_what_arithmetic_adds_to_a_norm_is_noise_that_is_missing():
    loose = msgspec.structs.replace(SGD, clipping=msgspec.structs.replace(SGD.clipping, excess_ppb=50_000_000))
    assert figures(stated(loose)).add_remove_micro > figures(stated(SGD)).add_remove_micro
    wild = msgspec.structs.replace(SGD, clipping=msgspec.structs.replace(SGD.clipping, excess_ppb=10**9))
    assert code_of(stated(wild)) == "parameters-out-of-range"


def test_discrete_noise_on_a_fine_grid():
    grid = {"arithmetic": "grid-discrete", "transform": "exact-discrete-gaussian"}
    fine = msgspec.structs.replace(SGD, noise=noise(4_000_000, grid_bits=20, **grid))
    assert figures(stated(fine)) == figures(stated(SGD))
    for bits in (0, 4, 60):
        coarse = msgspec.structs.replace(SGD, noise=noise(4_000_000, grid_bits=bits, **grid))
        assert code_of(stated(coarse)) == "mechanism"
    mixed = msgspec.structs.replace(SGD, noise=noise(4_000_000, grid_bits=20))
    assert code_of(stated(mixed)) == "mechanism"


def test_rounded_noise_on_a_coarse_grid():
    grid = {"arithmetic": "grid-rounded", "transform": "box-muller"}
    rounded = msgspec.structs.replace(SGD, noise=noise(4_000_000, grid_bits=10, **grid))
    assert figures(stated(rounded)) == figures(stated(SGD))
    for wrong in ({"grid_bits": 0}, {"grid_bits": 11}, {"grid_bits": 10, "transform": "box-muller-4"}):
        other = msgspec.structs.replace(SGD, noise=noise(4_000_000, **{**grid, **wrong}))
        assert code_of(stated(other)) == "mechanism"
    bare = msgspec.structs.replace(SGD, noise=noise(4_000_000, transform="box-muller"))  # single values, not rounded
    assert code_of(stated(bare)) == "mechanism"


def test_every_row_in_every_step_is_a_rate_of_one():
    sampling = msgspec.structs.replace(
        SGD.sampling,
        sampler="full-batch",
        rate=msgspec.structs.replace(SGD.sampling.rate, numerator=1, denominator=1),
        divisor_micro=10**9,
    )
    assert check_claims(stated(msgspec.structs.replace(SGD, sampling=sampling))).rate == 1


REFUSED = [
    ("mechanism", stated(ADASSP, unit="user")),
    ("mechanism", stated(OBJECTIVE, unit="graph")),
    ("mechanism", stated(GAP, unit="graph")),
    ("mechanism", stated(SGD, unit="edge")),
    ("mechanism", stated(msgspec.structs.replace(OBJECTIVE, loss="hinge"))),
    ("serving-leaks", stated(msgspec.structs.replace(GAP, serving="neighbours"))),
    ("fixed-seed", stated(msgspec.structs.replace(ADASSP, moments=noise(8_000_000, seed="0")))),
    ("fixed-seed", stated(msgspec.structs.replace(OBJECTIVE, output=noise(10_000, source="torch")))),
    ("mechanism", stated(msgspec.structs.replace(ADASSP, gram=noise(6_000_000, transform="ziggurat")))),
    ("parameters-out-of-range", stated(msgspec.structs.replace(ADASSP, gram=noise(1)))),
    ("parameters-out-of-range", stated(msgspec.structs.replace(ADASSP, row_norm_micro=0))),
    ("parameters-out-of-range", stated(msgspec.structs.replace(GAP, hops=0))),
    ("parameters-out-of-range", stated(msgspec.structs.replace(GAP, max_degree=10**9))),
    (
        "sampler",
        stated(
            msgspec.structs.replace(
                GAP,
                encoder=msgspec.structs.replace(SGD, sampling=msgspec.structs.replace(SGD.sampling, sampler="shuffle")),
            )
        ),
    ),
    (
        "accountant",
        stated(
            ADASSP,
            accounting=msgspec.structs.replace(
                a_certificate().accounting, accountant="dp-accounting-rdp", second_epsilon_micro=50_000_000
            ),
        ),
    ),
    ("delta", stated(ADASSP, delta="1")),
    (
        "sampler-constants",
        stated(ADASSP, dataset=msgspec.structs.replace(a_certificate().dataset, public_population=0)),
    ),
]


@pytest.mark.parametrize(("code", "certificate"), REFUSED, ids=[f"{code}-{i}" for i, (code, _) in enumerate(REFUSED)])
def test_a_mechanism_with_one_thing_wrong(code, certificate):
    assert code_of(certificate) == code


def a_statistic(**changes: Any) -> Statistic:
    base: dict[str, Any] = {
        "what": "mean of age",
        "mechanism": "laplace",
        "multiplier_micro": 10_000_000,
        "epsilon_micro": 100_000,
        "epsilon_replace_one_micro": 200_000,
        "delta": "0",
    }
    return Statistic(**{**base, **changes})


def preprocessing(*parts: Statistic, **changes: Any) -> Preprocessing:
    base: dict[str, Any] = {
        "statistics": "dp",
        "epsilon_micro": sum(part.epsilon_micro for part in parts),
        "epsilon_replace_one_micro": sum(part.epsilon_replace_one_micro for part in parts),
        "delta": max((part.delta for part in parts), default="0"),
        "parts": parts,
    }
    return Preprocessing(**{**base, **changes})


GAUSSIAN = a_statistic(mechanism="gaussian", epsilon_micro=430_000, epsilon_replace_one_micro=900_000, delta="0.000001")


NAMES = a_statistic(mechanism="laplace-threshold", contributions=1, threshold=160, delta="0.000001")
WORDS = a_statistic(
    mechanism="gaussian-threshold",
    contributions=20,
    threshold=300,
    delta="0.000002",
    epsilon_micro=440_000,
    epsilon_replace_one_micro=950_000,
)
DROPPED = Masked(column="a", action="drop", detail="")


def test_names_above_a_threshold_come_on_top():
    alone = figures(stated(SGD))
    for part in (NAMES, WORDS):
        beside = figures(stated(SGD, preprocessing=preprocessing(part, masked=(DROPPED,))))
        assert beside.add_remove_micro > alone.add_remove_micro + part.epsilon_micro


def test_statistics_come_on_top():
    alone = figures(stated(SGD))
    beside = figures(stated(SGD, preprocessing=preprocessing(a_statistic())))
    assert beside.add_remove_micro == alone.add_remove_micro + 100_000
    assert beside.replace_one_micro == alone.replace_one_micro + 200_000
    with_delta = figures(stated(SGD, preprocessing=preprocessing(a_statistic(), GAUSSIAN)))
    assert with_delta.add_remove_micro > alone.add_remove_micro + 530_000  # less of delta is left


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("private-statistics", preprocessing()),
        ("private-statistics", preprocessing(a_statistic(epsilon_micro=99_999))),
        ("private-statistics", preprocessing(a_statistic(epsilon_replace_one_micro=199_999))),
        ("private-statistics", preprocessing(a_statistic(mechanism="exponential"))),
        ("private-statistics", preprocessing(a_statistic(multiplier_micro=0))),
        ("private-statistics", preprocessing(a_statistic(what=""))),
        ("private-statistics", preprocessing(a_statistic(delta="0.000001"), delta="0.000001")),
        ("private-statistics", preprocessing(a_statistic(), epsilon_micro=99_999)),
        ("private-statistics", preprocessing(a_statistic(), delta="0.000001")),
        ("private-statistics", preprocessing(msgspec.structs.replace(GAUSSIAN, epsilon_micro=200_000))),
        ("private-statistics", Preprocessing(statistics="public-constants", epsilon_micro=0, parts=(a_statistic(),))),
        ("private-statistics", preprocessing(msgspec.structs.replace(NAMES, threshold=130))),  # its tail is above delta
        ("private-statistics", preprocessing(msgspec.structs.replace(NAMES, contributions=2))),
        ("private-statistics", preprocessing(msgspec.structs.replace(NAMES, epsilon_micro=99_999))),
        ("private-statistics", preprocessing(msgspec.structs.replace(NAMES, delta="0"))),
        ("private-statistics", preprocessing(msgspec.structs.replace(WORDS, epsilon_micro=300_000))),
        ("private-statistics", preprocessing(msgspec.structs.replace(WORDS, threshold=200))),
        ("private-statistics", preprocessing(msgspec.structs.replace(WORDS, threshold=10**10))),
        ("private-statistics", preprocessing(a_statistic(threshold=100))),
        ("certificate-malformed", preprocessing(a_statistic(), masked=(Masked(column="a", action="eat", detail=""),))),
        ("certificate-malformed", preprocessing(a_statistic(), masked=(Masked(column="", action="drop", detail=""),))),
        ("certificate-malformed", preprocessing(a_statistic(), masked=(DROPPED,) * 1025)),
        ("delta", preprocessing(a_statistic(delta="tiny"))),
        ("delta", preprocessing(a_statistic(mechanism="stated", delta="0.0001"))),
    ],
)
def test_statistics_that_do_not_add_up(code, wrong):
    assert code_of(stated(SGD, preprocessing=wrong)) == code


SEARCH = Search(
    choices=6, trials_mean_micro=10_000_000, shape=1, score="rows answered rightly", noise=noise(20_000_000)
)
SELECTED = Selection(how="dp-selected", epsilon_micro=1_000_000, note="a search", search=SEARCH)
RENYI: Accounting = msgspec.structs.replace(
    a_certificate().accounting, accountant="dp-accounting-rdp", second_epsilon_micro=50_000_000
)


def test_a_search_is_part_of_epsilon():
    alone = figures(stated(SGD))
    found = figures(stated(SGD, selection=SELECTED, accounting=RENYI))
    assert found.add_remove_micro > 1.5 * alone.add_remove_micro


@pytest.mark.parametrize(
    ("code", "mechanism", "selection"),
    [
        ("selection-unaccounted", ADASSP, SELECTED),
        ("selection-unaccounted", SGD, msgspec.structs.replace(SELECTED, search=None)),
        ("selection-unaccounted", SGD, msgspec.structs.replace(SELECTED, how="fixed")),
        ("selection-unaccounted", SGD, msgspec.structs.replace(SELECTED, epsilon_micro=0)),
        (
            "selection-unaccounted",
            SGD,
            msgspec.structs.replace(SELECTED, search=msgspec.structs.replace(SEARCH, choices=1)),
        ),
        (
            "fixed-seed",
            SGD,
            msgspec.structs.replace(
                SELECTED, search=msgspec.structs.replace(SEARCH, noise=noise(20_000_000, seed="1"))
            ),
        ),
        (
            "parameters-out-of-range",
            SGD,
            msgspec.structs.replace(SELECTED, search=msgspec.structs.replace(SEARCH, trials_mean_micro=1_000_000)),
        ),
    ],
)
def test_searches_that_do_not_count(code, mechanism, selection):
    assert code_of(stated(mechanism, selection=selection, accounting=RENYI)) == code


def test_a_replaced_edge_may_move_three_rows_one_of_them_twice():
    """Unit rows x, y, z: node 0 loses neighbour 1 and gains 2. Row 0 changes by z - y, rows 1 and 2 by x."""
    x, y, z = ([1.0, 0.0], [0.0, 1.0], [0.0, -1.0])
    moved = sum((a - b) ** 2 for a, b in zip(z, y, strict=True)) + 2 * sum(a**2 for a in x)
    account = check_claims(stated(GAP))
    one_row = msgspec.structs.replace(GAP, hops=1).noise.sigma_micro
    square = float(account.mu_squared_replace_one) / GAP.hops * (one_row / 1e6) ** 2
    assert square == pytest.approx(moved)


def test_statistics_and_scores_that_count_rows_protect_no_person():
    clipping = msgspec.structs.replace(SGD.clipping, kind="per-user-flat", rows_per_unit=8)
    persons = msgspec.structs.replace(SGD, clipping=clipping)
    assert code_of(stated(persons, unit="user", preprocessing=preprocessing(a_statistic()))) == "private-statistics"
    assert figures(stated(SGD, preprocessing=preprocessing(a_statistic())))
    search = Search(choices=4, trials_mean_micro=5_000_000, shape=1, score="right rows", noise=noise(50_000_000))
    selection = Selection(how="dp-selected", epsilon_micro=1, note="", search=search)
    accounting = msgspec.structs.replace(stated(SGD).accounting, accountant="dp-accounting-rdp")
    searched = {"selection": selection, "accounting": accounting}
    assert figures(stated(SGD, **searched))
    assert code_of(stated(persons, unit="user", **searched)) == "selection-unaccounted"


def test_constants_that_the_accountant_stumbles_over_are_refused_and_nothing_else():
    """dp-accounting 0.6 raises ValueError for a rate so near to one; a worker must see a refusal."""
    rate = msgspec.structs.replace(SGD.sampling.rate, numerator=10**12 - 1, denominator=10**12)
    population = stated(SGD).dataset.public_population
    sampling = msgspec.structs.replace(
        SGD.sampling,
        rate=rate,
        steps_declared=1,
        steps_executed=1,
        divisor_micro=population * 10**6 * rate.numerator // rate.denominator,
    )
    odd = msgspec.structs.replace(SGD, sampling=sampling, noise=noise(300_000))
    assert code_of(stated(odd)) == "parameters-out-of-range"
