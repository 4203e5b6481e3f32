"""The image decoder against damaged files of every format: the fixed part of benchmarks/fuzz.py."""

from hypothesis import HealthCheck, given, settings

from benchmarks.fuzz_properties import TARGETS


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(TARGETS["images"].inputs())
def test_a_damaged_image_of_any_format_has_a_status_both_ways(data: bytes) -> None:
    assert TARGETS["images"].property(data)
