"""Values to payloads and back, as workflow code has them."""

from __future__ import annotations

from typing import Any

import pytest

from tq_broker.converter import DEFAULT, DataConverter, ZlibCodec
from tq_broker.exceptions import ApplicationError, Malformed
from tq_broker.model.failure import Failure
from tq_broker.worker.conversion import KNOWN_MAX, Conversion
from tq_broker.workflow.definition import Function


def takes(number: int, text: str = "") -> dict[str, int]: ...


FUNCTION = Function(takes, bound=0)
CODED = DataConverter(codecs=(ZlibCodec(),))


@pytest.mark.parametrize("converter", [DEFAULT, CODED])
def test_there_and_back(converter: DataConverter) -> None:
    conversion = Conversion.of(converter)
    assert conversion.load(conversion.dump([1]), list[int]) == [1]
    assert conversion.load(conversion.dump(None)) is None
    packed = conversion.dump([1, "x", {"more": 2}])
    assert conversion.arguments(packed, FUNCTION, dynamic=False) == [1, "x", {"more": 2}]
    (raws,) = conversion.arguments(packed, FUNCTION, dynamic=True)
    assert raws[1].decode(str) == "x"
    error = conversion.exception(conversion.failure(ApplicationError("secret", type="Bad")))
    assert isinstance(error, ApplicationError)
    assert (error.message, error.type) == ("secret", "Bad")


def test_arguments_that_do_not_fit_are_malformed() -> None:
    with pytest.raises(Malformed):
        Conversion.of(DEFAULT).arguments(b'["many"]', FUNCTION, dynamic=False)
    with pytest.raises(Malformed, match="outcome"):
        Conversion.of(DEFAULT).activity_result(b"[]", Any)


def test_converters_are_shared_and_bounded() -> None:
    assert Conversion.of(CODED) is Conversion.of(CODED)
    for _ in range(2 * KNOWN_MAX):
        assert Conversion.of(DataConverter()).load(b"1", int) == 1


def test_hints_that_cannot_be_hashed() -> None:
    from typing import Annotated

    hint = Annotated[int, []]
    assert Conversion.of(DEFAULT).load(b"1", hint) == 1


def test_of_a_coded_failure_nothing_can_be_read() -> None:
    failure = Conversion.of(CODED).failure(ApplicationError("secret"))
    assert isinstance(failure, Failure)
    assert "secret" not in failure.message
