"""User values as opaque bytes: what comes out is what went in; what codecs hide stays hidden."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.converter import DEFAULT, DataConverter, ZlibCodec
from tq_broker.exceptions import Malformed, PayloadTooLarge
from tq_broker.model import failure as failures
from tq_broker.model import payload

CODED = DataConverter(codecs=(ZlibCodec(),))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(VALUES)
@pytest.mark.parametrize("converter", [DEFAULT, CODED])
def test_a_value_comes_out_as_it_went_in(converter: DataConverter, value: object) -> None:
    assert payload.load(payload.dump(value, converter), converter) == value


def test_arguments_stay_json_until_somebody_knows_their_types() -> None:
    packed = payload.dump_args([1, "two"], CODED)
    assert payload.load_args(packed, CODED) == [msgspec.Raw(b"1"), msgspec.Raw(b'"two"')]


def test_without_codecs_a_payload_is_json() -> None:
    assert payload.split(payload.dump([1], DEFAULT)) == ("", b"[1]")


def test_codecs_are_named_in_the_head() -> None:
    packed = payload.dump([1], CODED)
    codecs, data = payload.split(packed)
    assert codecs == "zlib"
    assert payload.join(codecs, data) == packed


@pytest.mark.parametrize(
    "data", [b"\x00", b"\x00zlib", b"\x00rot13\x00x", b"\x00zlib\x00x", b"nonsense", b"\xff"]
)
def test_garbage_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        payload.load_args(data, CODED)


FAILURE = failures.Failure(
    kind=failures.FailureKind.APPLICATION,
    message="secret",
    type="Bad",
    details=["secret"],
    non_retryable=True,
    stack_trace="secret",
    cause=failures.application("secret", "Cause"),
)


def test_of_a_sealed_failure_only_what_decides_about_retries_can_be_read() -> None:
    sealed = payload.seal_failure(FAILURE, CODED)
    assert (sealed.type, sealed.non_retryable) == ("Bad", True)
    assert b"secret" not in msgspec.json.encode(sealed)
    assert payload.unseal_failure(sealed, CODED) == FAILURE


def test_a_sealed_cause_is_unsealed_with_its_failure() -> None:
    sealed = payload.seal_failure(FAILURE, CODED)
    outer = failures.Failure(kind=failures.FailureKind.ACTIVITY, message="", cause=sealed)
    assert payload.unseal_failure(outer, CODED).cause == FAILURE


def test_without_codecs_a_failure_is_left_as_it_is() -> None:
    assert payload.seal_failure(FAILURE, DEFAULT) is FAILURE
    assert payload.unseal_failure(FAILURE, DEFAULT) is FAILURE


def test_a_failure_rests_as_a_history_can_keep_it() -> None:
    large = msgspec.structs.replace(FAILURE, details=[2**64])
    assert payload.seal_failure(large, DEFAULT).details == ["18446744073709551616"]
    sealed = payload.seal_failure(large, CODED)
    assert payload.unseal_failure(sealed, CODED) == large, "nobody looks at what codecs hide"


def test_a_sealed_failure_that_is_none_is_malformed() -> None:
    broken = failures.Failure(
        kind=failures.FailureKind.APPLICATION, message="", sealed=payload.seal(b"[]", CODED)
    )
    with pytest.raises(Malformed, match="failure"):
        payload.unseal_failure(broken, CODED)


def test_a_payload_is_bounded_and_a_large_one_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert payload.check_size(b"x" * payload.BYTES_WARN, "the memo") == b"x" * payload.BYTES_WARN
    assert not caplog.records
    payload.check_size(b"x" * payload.BYTES_MAX, "the memo")
    assert "the memo is 2097152 bytes long" in caplog.text
    with pytest.raises(PayloadTooLarge, match=r"the memo is 2097153 bytes long .* is 2097152"):
        payload.check_size(b"x" * (payload.BYTES_MAX + 1), "the memo")
