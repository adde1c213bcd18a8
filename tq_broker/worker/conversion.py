"""Values of workflow code to payloads and back, with decoders that are made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from tq_broker.common import RawValue
from tq_broker.converter import DataConverter
from tq_broker.exceptions import FailureError, Malformed
from tq_broker.model import failure as failures
from tq_broker.model import payload as payloads
from tq_broker.model.failure import Failure
from tq_broker.model.payload import Payload
from tq_broker.model.tasks import OutcomeBody
from tq_broker.workflow.definition import Function

Decoder = Callable[[bytes | memoryview], Any]
KNOWN_MAX = 16

_decode_outcome = msgspec.json.Decoder(OutcomeBody).decode
_known: dict[int, Conversion] = {}


class Conversion:
    """A data converter, as replays use it."""

    def __init__(self, converter: DataConverter) -> None:
        self.converter = converter
        self._decoders: dict[Any, Decoder] = {}

    @classmethod
    def of(cls, converter: DataConverter) -> Conversion:
        """The one for ``converter``: its runs share it."""
        found = _known.get(id(converter))
        if found is None:
            if len(_known) >= KNOWN_MAX:
                _known.clear()
            # It holds the converter, so that the id stays taken.
            found = _known[id(converter)] = cls(converter)
        return found

    def decoder(self, hint: Any) -> Decoder:
        """From JSON to a value of type ``hint``; the function raises `Malformed`."""
        try:
            return self._decoders[hint]
        except KeyError:
            made = self._decoders[hint] = self.converter.payload_converter.decoder(hint)
            return made
        except TypeError:  # a hint that cannot be hashed
            return self.converter.payload_converter.decoder(hint)

    def json(self, value: Any) -> bytes:
        """Raises `InvalidArgument`."""
        return b"null" if value is None else self.converter.payload_converter.encode(value)

    def dump(self, value: Any) -> Payload:
        """Raises `InvalidArgument`, `PayloadTooLarge`."""
        return payloads.seal(self.json(value), self.converter)

    def load(self, payload: Payload, hint: Any = Any) -> Any:
        """Raises `Malformed`."""
        return self.decoder(hint)(payloads.unseal(payload, self.converter))

    def arguments(self, payload: Payload, function: Function, *, dynamic: bool) -> list[Any]:
        """The arguments in ``payload``, as ``function`` wants them. Raises `Malformed`."""
        raws = payloads.load_args(payload, self.converter)
        if dynamic:
            return [[RawValue(bytes(raw), self.converter.payload_converter) for raw in raws]]
        hints = function.arg_types
        return [
            self.decoder(hints[i] if i < len(hints) else Any)(raw) for i, raw in enumerate(raws)
        ]

    def activity_input(self, args: Sequence[Any]) -> Payload:
        """The payload of an activity's body. Raises as `dump` does."""
        return payloads.seal(b'{"args":' + self.json(list(args)) + b"}", self.converter)

    def activity_result(self, payload: Payload, hint: Any) -> Any:
        """The result in the payload of an outcome's body. Raises `Malformed`."""
        try:
            body = _decode_outcome(payloads.unseal(payload, self.converter))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Malformed(f"outcome: {error}") from error
        return self.decoder(hint)(body.result)

    def failure(self, error: BaseException) -> Failure:
        """How ``error`` rests in a history. Raises `PayloadTooLarge`."""
        return payloads.seal_failure(failures.from_exception(error), self.converter)

    def exception(self, failure: Failure) -> FailureError:
        """The inverse of `failure`. Raises `Malformed`."""
        return failures.to_exception(payloads.unseal_failure(failure, self.converter))
