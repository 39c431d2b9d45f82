"""The trust file: what it accepts, and that every mistake is one line that says what to mend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import ConfigurationError
from sealgate.evidence.trust import Trust, load_trust, parse_epsilon, parse_trust

TrustText = Callable[..., str]


def test_a_directory_is_read_with_the_authority_beside_it(trust_text: TrustText, tmp_path: Path) -> None:
    (tmp_path / "trust.toml").write_text(trust_text('[models.toy]\nmax_epsilon = "2.5"\n'))
    assert load_trust(tmp_path).ca_file is None
    (tmp_path / "ca.pem").write_text("pem")
    trust = load_trust(tmp_path)
    assert trust == load_trust(tmp_path / "trust.toml")
    assert trust.ca_file == tmp_path / "ca.pem"
    assert trust.models["toy"].max_epsilon_micro == 2_500_000
    assert (trust.strict, trust.strictly().strict) == (False, True)


def test_software_evidence_is_refused_unless_the_file_says_otherwise(make_trust: Callable[..., Trust]) -> None:
    assert make_trust(accept_software="").accept_software is False


def test_a_missing_file_says_where_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="sealgate init"):
        load_trust(tmp_path / "trust.toml")


@pytest.mark.parametrize(
    "changes",
    [
        {"audience": '""'},
        {"audience": '"two words"'},
        {"audience": '"host/path"'},
        {"audience": ""},
        {"url": '""'},
        {"url": '"http://sealgate.test"'},
        {"url": '"https://"'},
        {"url": '"https://user:password@sealgate.test"'},
        {"url": '"https://sealgate.test/?x=1"'},
        {"url": '"https://sealgate.test:99999"'},
        {"operator_keys": "[]"},
        {"operator_keys": '[""]'},
        {"operator_keys": '["QUJD"]'},
        {"operator_keys": '["not base64"]'},
        {"operator_keys": ""},
        {"log_keys": "[]"},
        {"log_keys": '["name+00+AAAA"]'},
        {"log_keys": '[""]'},
        {"profiles": "[]"},
        {"profiles": '["relaxed"]'},
        {"accept_software": '"yes"'},
        {"accept_hardware": "true"},
        {"extra": '[models.""]\nmax_epsilon = "1"\n'},
        {"extra": "[models.toy]\n"},
        {"extra": '[models.toy]\nmodel_digest = ""\n'},
        {"extra": f'[models.toy]\nmodel_digest = "{"A" * 64}"\n'},
        {"extra": '[models.toy]\nmax_epsilon = ""\n'},
        {"extra": '[models.toy]\nmax_epsilon = "1e3"\n'},
        {"extra": "[models.toy]\nmax_epsilon = 3.0\n"},
        {"extra": '[models.toy]\nepsilon = "3"\n'},
        {"extra": "[models"},
        {"required_layers": "[]"},
        {"required_layers": '["Seccomp"]'},
        {"required_layers": '[""]'},
        {"max_epsilon": '""'},
        {"max_epsilon": "8"},
        {"policy_digests": "[]"},
        {"policy_digests": '["d"]'},
        {"extra": "[measurements]\ncode = []\n"},
        {"extra": '[measurements]\ncode = ["c"]\n'},
        {"extra": f'[measurements]\n"Code!" = ["{"c" * 64}"]\n'},
    ],
)
def test_mistakes_are_one_line_that_names_the_file(trust_text: TrustText, changes: dict[str, str]) -> None:
    text = trust_text(changes.pop("extra", ""), **changes)
    with pytest.raises(ConfigurationError) as failure:
        parse_trust(text.encode(), source="client/trust.toml")
    assert str(failure.value).startswith("client/trust.toml: ")
    assert "\n" not in str(failure.value)


@settings(max_examples=100)
@given(data=st.binary(max_size=200))
def test_garbage_is_a_typed_error(data: bytes) -> None:
    with pytest.raises(ConfigurationError):
        parse_trust(data, source="trust.toml")


@given(micro=st.integers(0, 999_999_999_999))
def test_epsilon_is_exact(micro: int) -> None:
    assert parse_epsilon(f"{micro // 10**6}.{micro % 10**6:06d}") == micro


@pytest.mark.parametrize("text", ["", ".", "1.", "-1", "+1", "1,5", "1.0000001", "٣", "1 ", "inf", "1.5\n"])
def test_epsilon_in_other_forms_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_epsilon(text)
