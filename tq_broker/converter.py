"""Values to bytes and back: a converter by type hints, then a chain of codecs.

JSON by default, through `msgspec`: dataclasses, structs, enums, dates, UUIDs, decimals and the
like go out as JSON and come back as what the type hint says. Nothing is ever looked up by a name
found in a message, and nothing is unpickled.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import msgspec

from tq_broker.exceptions import InvalidArgument, Malformed, PayloadTooLarge

JSON = "application/json"
ENCODED = "application/x-tq-encoded"
"""Content type of a body that went through codecs, so that plain consumers refuse it."""

MESSAGE_BYTES_MAX = 8 * 1024 * 1024
"""Default bound of a body: half of what RabbitMQ 4.x accepts."""


class PayloadConverter(Protocol):
    """Values to bytes and back. Replace it to speak something other than JSON's types."""

    def encode(self, value: Any) -> bytes:
        """Raises `InvalidArgument` for a value it cannot express."""

    def decoder(self, hint: Any) -> Callable[[bytes | memoryview], Any]:
        """A function from bytes to a value of the type ``hint``.

        The function raises `Malformed` for bytes that do not fit.
        """


class JSONPayloadConverter:
    """JSON by `msgspec`.

    Args:
        enc_hook: Turns a value of an unknown type into one that JSON has (see `msgspec`).
        dec_hook: The inverse: ``(type, value) -> instance``.
    """

    def __init__(
        self,
        *,
        enc_hook: Callable[[Any], Any] | None = None,
        dec_hook: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        self._enc_hook = enc_hook
        self._dec_hook = dec_hook
        self._encoder = msgspec.json.Encoder(enc_hook=enc_hook)

    def __getstate__(self) -> dict[str, Any]:
        # An encoder cannot be pickled, and processes for activities need the converter.
        return {name: value for name, value in vars(self).items() if name != "_encoder"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._encoder = msgspec.json.Encoder(enc_hook=self._enc_hook)

    def encode(self, value: Any) -> bytes:
        try:
            return self._encoder.encode(value)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidArgument(f"cannot be sent as JSON: {error}") from error

    def decoder(self, hint: Any) -> Callable[[bytes | memoryview], Any]:
        try:
            decode = msgspec.json.Decoder(hint, dec_hook=self._dec_hook, strict=False).decode
        except TypeError:
            # A hint that JSON cannot tell apart (a union of two classes): the plain JSON value
            # is what the function gets.
            decode = msgspec.json.Decoder().decode

        def checked(data: bytes | memoryview) -> Any:
            try:
                return decode(data)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise Malformed(f"body: {error}") from error

        return checked


class PayloadCodec(Protocol):
    """Bytes to bytes, such as compression or encryption."""

    @property
    def name(self) -> str:
        """What the ``tq-codecs`` header calls it: ASCII letters, digits, ``-``."""

    def encode(self, data: bytes) -> bytes: ...

    def decode(self, data: bytes, bytes_max: int) -> bytes:
        """Raises `Malformed` for bad data, or for a result over ``bytes_max``."""


class ZlibCodec:
    """Compression; expansion is bounded, so a bomb is refused after ``bytes_max``."""

    name = "zlib"

    def __init__(self, level: int = 6) -> None:
        self._level = level

    def encode(self, data: bytes) -> bytes:
        return zlib.compress(data, self._level)

    def decode(self, data: bytes, bytes_max: int) -> bytes:
        inflater = zlib.decompressobj()
        try:
            plain = inflater.decompress(data, bytes_max)
        except zlib.error as error:
            raise Malformed(f"body: zlib: {error}") from error
        if inflater.unconsumed_tail or not inflater.eof:
            raise Malformed(f"body: expands to more than {bytes_max} bytes, or is cut short")
        return plain


@dataclass(frozen=True)
class DataConverter:
    """Converter and codecs of a client and its workers; both sides need the same.

    Attributes:
        codecs: Applied in this order when encoding. A worker also decodes bodies that went
            through fewer of them, or none.
        bytes_max: Bound of a body, before and after the codecs.
    """

    payload_converter: PayloadConverter = field(default_factory=JSONPayloadConverter)
    codecs: Sequence[PayloadCodec] = ()
    bytes_max: int = MESSAGE_BYTES_MAX

    @cached_property
    def codec_names(self) -> str:
        """The value of the ``tq-codecs`` header; empty without codecs."""
        return ",".join(codec.name for codec in self.codecs)

    def seal(self, body: bytes) -> bytes:
        """Apply the codecs. Raises `PayloadTooLarge`."""
        for codec in self.codecs:
            # `unseal` expands to no more, so that nobody could read it.
            body = codec.encode(self.check(body))
        return self.check(body)

    def check(self, body: bytes) -> bytes:
        """``body``, if it is not too large to be sent. Raises `PayloadTooLarge`."""
        if len(body) > self.bytes_max:
            raise PayloadTooLarge(
                f"the encoded body is {len(body)} bytes long; the bound is {self.bytes_max}"
            )
        return body

    def unseal(self, body: bytes, codec_names: str) -> bytes:
        """Undo the codecs that ``codec_names`` lists. Raises `Malformed`."""
        if len(body) > self.bytes_max:
            raise Malformed(f"body: {len(body)} bytes; the bound is {self.bytes_max}")
        known = {codec.name: codec for codec in self.codecs}
        for name in reversed(codec_names.split(",")) if codec_names else ():
            if name not in known:
                raise Malformed(f"header tq-codecs: {name!r} is not configured here")
            body = known[name].decode(body, self.bytes_max)
        return body


DEFAULT = DataConverter()
