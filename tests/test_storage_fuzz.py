"""The readers of lists, conditions and urls against what hypothesis draws: benchmarks/fuzz.py."""

import pytest
from hypothesis import HealthCheck, given, settings

from benchmarks.fuzz_properties import TARGETS

CASES = {"parquet": 40, "csv": 30, "jsonl": 30, "tar": 30, "where": 30, "uris": 150}


@pytest.mark.parametrize("name", CASES)
def test_a_reader_holds_its_property_whatever_it_is_given(name: str) -> None:
    target = TARGETS[name]

    @settings(
        max_examples=CASES[name],
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(target.inputs())
    def holds(drawn: object) -> None:
        assert target.property(drawn)

    holds()


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(TARGETS["addresses"].inputs())
def test_no_private_address_is_told_to_be_public(address: str) -> None:
    assert TARGETS["addresses"].property(address)
