"""User values as they travel through workflows and rest in histories: opaque bytes.

A payload is JSON, or what the codecs of a `DataConverter` made of it behind a short head that names
them. Nobody between the two ends needs to know which; in particular a history service never
decodes one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import msgspec

from tq_broker.converter import DataConverter
from tq_broker.exceptions import Malformed, PayloadTooLarge
from tq_broker.model.failure import Failure, storable

log = logging.getLogger(__name__)

HEAD = b"\x00"
"""First byte of a sealed payload; no JSON text begins with it."""

Payload = bytes
NULL: Payload = b"null"


def seal(json: bytes, converter: DataConverter) -> Payload:
    """The payload for a JSON text. Raises `PayloadTooLarge`."""
    data = converter.seal(json)
    return HEAD + converter.codec_names.encode() + HEAD + data if converter.codecs else data


def split(payload: Payload) -> tuple[str, bytes]:
    """The names of a payload's codecs (empty for JSON) and its data. Raises `Malformed`."""
    if not payload.startswith(HEAD):
        return "", payload
    names, head, data = payload[1:].partition(HEAD)
    if not head:
        raise Malformed("payload: its head is cut short")
    return names.decode("ascii", "replace"), data


def join(codecs: str, data: bytes) -> Payload:
    """The inverse of `split`."""
    return HEAD + codecs.encode() + HEAD + data if codecs else data


def unseal(payload: Payload, converter: DataConverter) -> bytes:
    """The JSON text in ``payload``. Raises `Malformed`."""
    codecs, data = split(payload)
    return converter.unseal(data, codecs)


def dump(value: Any, converter: DataConverter) -> Payload:
    """The payload of one value. Raises `InvalidArgument`, `PayloadTooLarge`."""
    return seal(converter.payload_converter.encode(value), converter)


def load(payload: Payload, converter: DataConverter, hint: Any = Any) -> Any:
    """The value in ``payload`` as type ``hint``. Raises `Malformed`."""
    return converter.payload_converter.decoder(hint)(unseal(payload, converter))


def dump_args(args: Sequence[Any], converter: DataConverter) -> Payload:
    """The payload of a list of arguments. Raises as `dump` does."""
    return dump(list(args), converter)


def load_args(payload: Payload, converter: DataConverter) -> list[msgspec.Raw]:
    """The arguments in ``payload``, each still JSON. Raises `Malformed`."""
    try:
        return msgspec.json.decode(unseal(payload, converter), type=list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"arguments: {error}") from error


_encode = msgspec.json.encode
_decode_failure = msgspec.json.Decoder(Failure).decode


def seal_failure(failure: Failure, converter: DataConverter) -> Failure:
    """``failure`` as it may rest in a history: with codecs, only what a retry policy needs to know
    stays readable, and without them it is as `storable` makes it. Raises `PayloadTooLarge`."""
    if not converter.codecs or failure.sealed is not None:
        return storable(failure)
    return Failure(
        kind=failure.kind,
        message="encoded failure",
        type=failure.type,
        non_retryable=failure.non_retryable,
        next_retry_delay_ms=failure.next_retry_delay_ms,
        category=failure.category,
        timeout_type=failure.timeout_type,
        sealed=seal(_encode(failure), converter),
    )


def unseal_failure(failure: Failure, converter: DataConverter) -> Failure:
    """The inverse of `seal_failure`. Raises `Malformed`."""
    if failure.sealed is None:
        cause = failure.cause and unseal_failure(failure.cause, converter)
        return failure if cause is failure.cause else msgspec.structs.replace(failure, cause=cause)
    try:
        return _decode_failure(unseal(failure.sealed, converter))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"failure: {error}") from error


BYTES_MAX = 2 * 1024 * 1024
"""Bound of one payload of a workflow."""
BYTES_WARN = 512 * 1024


def check_size(payload: Payload, what: str) -> Payload:
    """Return ``payload`` if a workflow may carry it; a large one is logged.

    Args:
        what: Names it in the warning and the error.

    Raises:
        PayloadTooLarge: it is over `BYTES_MAX`.
    """
    size = len(payload)
    if size > BYTES_MAX:
        raise PayloadTooLarge(
            f"{what} is {size} bytes long when encoded; the bound is {BYTES_MAX}."
            " Store it elsewhere and pass where it is"
        )
    if size > BYTES_WARN:
        log.warning("%s is %d bytes long when encoded; the bound is %d", what, size, BYTES_MAX)
    return payload
