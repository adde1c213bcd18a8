"""Values to bytes and back, also for those who mean harm."""

from __future__ import annotations

import contextlib
import datetime
import enum
import pickle
import uuid
import zlib
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.converter import DataConverter, JSONPayloadConverter, ZlibCodec
from tq_broker.exceptions import InvalidArgument, Malformed, PayloadTooLarge

CONVERTER = JSONPayloadConverter()


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Thing:
    name: str
    colour: Colour
    when: datetime.datetime
    price: Decimal
    id: uuid.UUID
    tags: set[str]
    parent: Thing | None = None


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abc"), inner),
)


@given(json_values)
def test_json_values_come_back_as_they_were(value: Any) -> None:
    assert CONVERTER.decoder(Any)(CONVERTER.encode(value)) == value


@given(st.binary())
def test_any_bytes_are_a_value_or_malformed(data: bytes) -> None:
    for hint in (Any, int, Thing, list[str]):
        with contextlib.suppress(Malformed):
            CONVERTER.decoder(hint)(data)


def test_typed_values_come_back_as_their_hint_says() -> None:
    when = datetime.datetime(2024, 1, 2, tzinfo=datetime.timezone.utc)
    thing = Thing("a", Colour.RED, when, Decimal("1.10"), uuid.UUID(int=3), {"x"})
    thing.parent = Thing("b", Colour.RED, when, Decimal(2), uuid.UUID(int=4), set())
    assert CONVERTER.decoder(Thing)(CONVERTER.encode(thing)) == thing


@dataclass
class Other:
    name: str


def test_a_hint_that_json_cannot_tell_apart_gets_the_plain_value() -> None:
    assert CONVERTER.decoder(Thing | Other)(b'{"x":1}') == {"x": 1}


def test_a_class_without_a_hook_is_refused_with_its_name() -> None:
    class Own: ...

    with pytest.raises(Malformed, match="Expected `Own`, got `dict`"):
        CONVERTER.decoder(Own)(b'{"x":1}')


def test_hooks_add_types() -> None:
    converter = JSONPayloadConverter(enc_hook=lambda value: [value.real, value.imag])
    assert converter.encode(1 + 2j) == b"[1.0,2.0]"
    decoding = JSONPayloadConverter(dec_hook=lambda kind, value: kind(*value))
    assert decoding.decoder(complex)(b"[1.0,2.0]") == 1 + 2j


def test_a_converter_can_be_pickled_with_its_hooks() -> None:
    converter = pickle.loads(pickle.dumps(JSONPayloadConverter(enc_hook=repr)))
    assert converter.encode(1 + 2j) == b'"(1+2j)"'


def test_what_a_subclass_remembers_is_pickled_too() -> None:
    converter = Remembering(3)
    assert pickle.loads(pickle.dumps(converter)).number == 3


class Remembering(JSONPayloadConverter):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def circle() -> list[Any]:
    values: list[Any] = []
    values.append(values)
    return values


@pytest.mark.parametrize("value", [object(), circle(), "\ud800", {"\udfff": 1}, {(1, 2): 3}])
def test_a_value_that_json_cannot_express_is_an_invalid_argument(value: Any) -> None:
    with pytest.raises(InvalidArgument, match="cannot be sent as JSON"):
        CONVERTER.encode(value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b'"\\ud800"',
        b'"\xed\xa0\x80"',
        b"\xff",
        b"{",
        b"1 2",
        b"\x80\x04.",
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
    ],
)
def test_what_is_no_json_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed, match="body: "):
        CONVERTER.decoder(Any)(data)


def test_nan_is_sent_as_null() -> None:
    # JSON has no such number; msgspec writes null, as JavaScript does.
    assert CONVERTER.encode([float("nan"), float("inf")]) == b"[null,null]"


# --- codecs -------------------------------------------------------------------------------------


class Reversing:
    name = "reversed"

    def encode(self, data: bytes) -> bytes:
        return data[::-1]

    def decode(self, data: bytes, bytes_max: int) -> bytes:
        return data[::-1]


CODED = DataConverter(codecs=[ZlibCodec(), Reversing()])


@given(st.binary(max_size=2000))
def test_what_is_sealed_can_be_unsealed(body: bytes) -> None:
    assert CODED.unseal(CODED.seal(body), CODED.codec_names) == body
    assert DataConverter().unseal(DataConverter().seal(body), "") == body


def test_codecs_are_named_in_the_order_of_their_use() -> None:
    assert CODED.codec_names == "zlib,reversed"
    assert CODED.seal(b"abc") == zlib.compress(b"abc", 6)[::-1]


def test_a_body_with_fewer_codecs_or_none_is_understood() -> None:
    assert CODED.unseal(b"cba", "reversed") == b"abc"
    assert CODED.unseal(b"abc", "") == b"abc"


@pytest.mark.parametrize("names", ["gzip", "zlib,", ",", "zlib,,reversed", "ZLIB", " zlib"])
def test_a_codec_that_is_not_configured_is_malformed(names: str) -> None:
    with pytest.raises(Malformed, match=r"tq-codecs: .* is not configured here"):
        CODED.unseal(CODED.seal(b"abc"), names)


@given(st.binary(max_size=200))
def test_bytes_that_are_not_compressed_are_malformed(data: bytes) -> None:
    with pytest.raises(Malformed, match=r"zlib: |expands"):
        ZlibCodec().decode(data, 1000)


def test_a_body_cut_short_is_malformed() -> None:
    with pytest.raises(Malformed, match="cut short"):
        ZlibCodec().decode(zlib.compress(b"abc" * 100)[:-5], 1000)


def test_a_bomb_is_refused_before_it_expands() -> None:
    bomb = zlib.compress(bytes(50_000_000), 9)
    assert len(bomb) < 100_000
    with pytest.raises(Malformed, match="expands to more than 1000 bytes"):
        DataConverter(codecs=[ZlibCodec()], bytes_max=100_000).codecs[0].decode(bomb, 1000)


def test_a_body_of_just_the_bound_passes() -> None:
    assert ZlibCodec().decode(zlib.compress(bytes(1000)), 1000) == bytes(1000)
    with pytest.raises(Malformed):
        ZlibCodec().decode(zlib.compress(bytes(1001)), 1000)


def test_many_layers_of_compression_are_bounded_each() -> None:
    converter = DataConverter(codecs=[ZlibCodec()], bytes_max=2000)
    body = zlib.compress(zlib.compress(bytes(1_000_000), 9), 9)
    with pytest.raises(Malformed, match="expands"):
        converter.unseal(body, "zlib,zlib")


def test_a_body_over_the_bound_is_refused_on_both_sides() -> None:
    converter = DataConverter(bytes_max=10)
    assert converter.seal(bytes(10)) == bytes(10)
    with pytest.raises(PayloadTooLarge, match="11 bytes long; the bound is 10"):
        converter.seal(bytes(11))
    with pytest.raises(Malformed, match="11 bytes; the bound is 10"):
        converter.unseal(bytes(11), "")


def test_what_nobody_could_expand_is_not_compressed() -> None:
    converter = DataConverter(codecs=[ZlibCodec()], bytes_max=1000)
    assert converter.unseal(converter.seal(bytes(1000)), "zlib") == bytes(1000)
    with pytest.raises(PayloadTooLarge, match="1001 bytes long; the bound is 1000"):
        converter.seal(bytes(1001))


@given(st.binary(max_size=40), st.integers(0, 40))
def test_what_is_accepted_can_be_read(body: bytes, bytes_max: int) -> None:
    converter = DataConverter(codecs=[Reversing(), ZlibCodec()], bytes_max=bytes_max)
    with contextlib.suppress(PayloadTooLarge):
        assert converter.unseal(converter.seal(body), converter.codec_names) == body
