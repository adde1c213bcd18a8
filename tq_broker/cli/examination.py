"""An examination: tries on a RabbitMQ what clients and workers will do, and cleans up.

Rules of this file: everything is made under throwaway names, ``tq.<namespace>.doctor-...``, which
the permissions of a real role cover; a try has a channel of its own, because RabbitMQ closes
the channel on which something is refused; what was made is removed whatever happens. It uses
py-amqp alone, so that it finds out about the broker and not about this library.
"""

from __future__ import annotations

import contextlib
import operator
import secrets
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any, TypeVar

import amqp
from amqp.exceptions import AMQPError

from tq_broker.cli import diagnosis
from tq_broker.cli.diagnosis import Finding, Level
from tq_broker.clock import Clock, remaining
from tq_broker.exceptions import AccessRefused, Bug, TqBrokerError
from tq_broker.model.names import Kind, Names
from tq_broker.queues.address import Address
from tq_broker.queues.errors import translate
from tq_broker.queues.handshake import client_properties, tls_context
from tq_broker.queues.kombu_transport import TlsTransport

CONNECT_S = 5.0
ANSWER_S = 10.0
CONFIRM_S = 5.0
EXPIRES_MS = 60_000
ROUND_TRIPS = 20

T = TypeVar("T")
_ERRORS = (AMQPError, OSError)


class _Connection(amqp.Connection):  # type: ignore[misc]
    """py-amqp's, with our settings of TLS."""

    def Transport(
        self, host: str, connect_timeout: float, ssl: Any = False, *args: Any, **kwargs: Any
    ) -> Any:
        if not ssl:
            return super().Transport(host, connect_timeout, ssl, *args, **kwargs)
        read_timeout, write_timeout = args
        return TlsTransport(
            host,
            connect_timeout=connect_timeout,
            ssl=ssl,
            read_timeout=read_timeout,
            write_timeout=write_timeout,
            **kwargs,
        )


class Examination:
    """One look at one broker. Call `findings` once."""

    def __init__(self, address: Address, names: Names, clock: Clock) -> None:
        self._address = address
        self._names = names
        self._clock = clock
        self._connection: Any = None
        self._blocked = ""
        token = secrets.token_hex(6)
        self._prefix = f"{names.queue(Kind.PARKED)}".removesuffix(Kind.PARKED.value)
        self._prefix += f"doctor-{token}"
        self._exchange = f"{self._prefix}-exchange"
        self._queues: list[str] = []
        self._has_exchange = False

    def findings(self) -> Iterator[Finding]:
        """What was found, one after the other; ends early when there is no connection."""
        try:
            self._connect()
        except _ERRORS as error:
            yield diagnosis.unreachable(_ours(error), self._address)
            return
        try:
            yield Finding(Level.OK, "connection", f"{self._address}")
            yield from diagnosis.version_facts(self._version())
            for examine in (
                self._permissions,
                self._lock,
                self._quorum,
                self._stream,
                self._publishing,
                self._clocks,
                self._default_type,
                self._namespace,
            ):
                yield from self._examined(examine)
        finally:
            self._clean_up()

    def _examined(self, examine: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
        try:
            yield from examine()
        except _ERRORS as error:
            subject = examine.__name__.strip("_").replace("_", " ")
            yield Finding(Level.FAULT, subject, f"the try failed: {_ours(error)}")

    # --- connection ---

    def _connect(self) -> None:
        address = self._address
        host = f"[{address.host}]" if ":" in address.host else address.host
        tls = address.tls
        self._connection = _Connection(
            host=f"{host}:{address.port}",
            userid=address.user,
            password=address.password,
            login_method="PLAIN",
            virtual_host=address.vhost,
            ssl={"context": tls_context(tls), "server_hostname": tls.server_name} if tls else False,
            connect_timeout=CONNECT_S,
            read_timeout=ANSWER_S,
            write_timeout=ANSWER_S,
            client_properties=client_properties("tq-broker doctor"),
            on_blocked=self._on_blocked,
            heartbeat=0,
        )
        try:
            self._connection.connect()
        except _ERRORS:
            self._connection.collect()
            raise

    def _on_blocked(self, reason: str) -> None:
        self._blocked = reason or "no reason given"

    def _version(self) -> tuple[int, ...]:
        text = str(self._connection.server_properties.get("version", "0"))
        numbers = text.replace("-", ".").replace("+", ".").split(".")
        return tuple(int(number) for number in numbers[:3] if number.isdigit())

    def _try(self, run: Callable[[Any], T]) -> T:
        """``run`` on a channel of its own.

        Raises:
            AccessRefused: a permission is missing.
            amqp.AMQPError, OSError: anything else.
        """
        if not self._connection.connected:
            # RabbitMQ answers some requests by closing the connection.
            self._connect()
        channel = self._connection.channel()
        try:
            return run(channel)
        except AMQPError as error:
            ours = _ours(error)
            if isinstance(ours, AccessRefused):
                raise ours from error
            raise
        finally:
            if channel.is_open:
                with contextlib.suppress(*_ERRORS):
                    channel.close()

    def _declare(self, what: str, **arguments: Any) -> str:
        """Declare a throwaway queue; returns its name."""
        name = f"{self._prefix}-{what}"
        self._queues.append(name)
        table = {key.replace("_", "-"): value for key, value in arguments.items()}
        self._try(
            lambda ch: ch.queue_declare(name, durable=True, auto_delete=False, arguments=table)
        )
        return name

    def _clean_up(self) -> None:
        for name in self._queues:
            with contextlib.suppress(TqBrokerError, *_ERRORS):
                self._try(operator.methodcaller("queue_delete", name))
        if self._has_exchange:
            with contextlib.suppress(TqBrokerError, *_ERRORS):
                self._try(lambda ch: ch.exchange_delete(self._exchange))
        with contextlib.suppress(*_ERRORS):
            self._connection.close()

    # --- tries ---

    def _permissions(self) -> Iterator[Finding]:
        queue = ""
        for what, needed_for, run in (
            ("configure", "everybody declares queues on demand", self._configure),
            ("write", "clients and workers publish", self._write),
            ("read", "workers consume, and bind queues to exchanges", self._read),
        ):
            try:
                queue = run(queue)
            except AccessRefused:
                yield diagnosis.refused(what, needed_for, self._address, self._names)
                return
            yield Finding(Level.OK, f"permission to {what}", self._prefix)

    def _configure(self, _: str) -> str:
        self._try(
            lambda ch: ch.exchange_declare(
                self._exchange, "direct", durable=True, auto_delete=False
            )
        )
        self._has_exchange = True
        return self._declare("classic", x_queue_type="classic", x_expires=EXPIRES_MS)

    def _write(self, queue: str) -> str:
        # Default exchange aside, publishing needs "write" on the exchange. Nothing is bound yet.
        self._try(lambda ch: self._published(ch, "nowhere"))
        return queue

    def _read(self, queue: str) -> str:
        self._try(lambda ch: ch.queue_bind(queue, self._exchange, queue))
        self._try(lambda ch: ch.basic_get(queue, no_ack=True))
        return queue

    def _lock(self) -> Iterator[Finding]:
        name = f"{self._prefix}-lock"
        with contextlib.suppress(AccessRefused):
            self._try(
                lambda ch: ch.queue_declare(
                    name,
                    exclusive=True,
                    durable=False,
                    auto_delete=False,
                    arguments={"x-queue-type": "classic"},
                )
            )
            self._queues.append(name)
            yield Finding(Level.OK, "exclusive queues", "can be declared")

    def _quorum(self) -> Iterator[Finding]:
        advice = 'use queue_type = "classic" in the profile, or upgrade RabbitMQ'
        try:
            self._declare("quorum", x_queue_type="quorum", x_delivery_limit=20)
        except AccessRefused:
            return
        except AMQPError as error:
            yield Finding(Level.FAULT, "quorum queues", str(_ours(error)), advice)
        else:
            yield Finding(Level.OK, "quorum queues", "can be declared")

    def _stream(self) -> Iterator[Finding]:
        advice = (
            "rabbitmqctl enable_feature_flag stream_queue (3.9 to 3.11); without streams there is"
            " no settings log: no cancellation by id and no list of task queues"
        )
        try:
            name = self._declare("stream", x_queue_type="stream")
            self._try(lambda ch: ch.queue_bind(name, self._exchange, name))
            self._try(lambda ch: self._published(ch, name))
            read = self._try(lambda ch: self._read_stream(ch, name))
        except AccessRefused:
            return
        except AMQPError as error:
            yield Finding(Level.FAULT, "streams", str(_ours(error)), advice)
            return
        if read:
            yield Finding(Level.OK, "streams", "can be declared, written and read")
        else:
            yield Finding(Level.FAULT, "streams", "what was written cannot be read", advice)

    def _read_stream(self, channel: Any, name: str) -> bool:
        read: list[Any] = []
        channel.basic_qos(0, 1, False)
        channel.basic_consume(name, callback=read.append, arguments={"x-stream-offset": "first"})
        deadline = self._clock.monotonic() + ANSWER_S
        while not read and remaining(self._clock, deadline):
            with contextlib.suppress(TimeoutError):
                self._connection.drain_events(timeout=remaining(self._clock, deadline) or 0.001)
        return bool(read)

    def _publishing(self) -> Iterator[Finding]:
        classic = f"{self._prefix}-classic"
        if not self._has_exchange:
            return
        try:
            took_s = sorted(self._try(lambda ch: self._round_trips(ch, classic)))
        except TimeoutError:
            why = f": {self._blocked}" if self._blocked else ""
            yield Finding(
                Level.FAULT,
                "publishing",
                f"no confirm within {CONFIRM_S:g}s{why}",
                "RabbitMQ blocks publishers while memory or disk is short: rabbitmq-diagnostics"
                " alarms",
            )
            return
        except AccessRefused:
            return
        if self._blocked:
            yield Finding(Level.FAULT, "publishing", f"blocked: {self._blocked}")
            return
        median_ms, worst_ms = took_s[len(took_s) // 2] * 1000, took_s[-1] * 1000
        text = f"confirmed in {median_ms:.1f} ms (median of {len(took_s)}; at most {worst_ms:.1f})"
        yield Finding(Level.OK, "publishing", text)

    def _round_trips(self, channel: Any, key: str) -> list[float]:
        took_s = []
        for _ in range(ROUND_TRIPS):
            before = self._clock.monotonic()
            if self._published(channel, key):
                took_s.append(self._clock.monotonic() - before)
        return took_s or [0.0]

    def _published(self, channel: Any, key: str) -> bool:
        """Publish, mandatory and confirmed; False if it was returned."""
        returned: list[Any] = []
        channel.events["basic_return"].add(lambda *told: returned.append(told))
        message = amqp.Message(b"{}", delivery_mode=2)
        channel.basic_publish_confirm(
            message, self._exchange, key, mandatory=True, confirm_timeout=CONFIRM_S
        )
        return not returned

    def _clocks(self) -> Iterator[Finding]:
        """A message that dies of old age is stamped with the broker's time."""
        classic = f"{self._prefix}-classic"
        if not self._has_exchange:
            return
        try:
            dying = self._declare(
                "dying",
                x_queue_type="classic",
                x_expires=EXPIRES_MS,
                x_message_ttl=1,
                x_dead_letter_exchange=self._exchange,
                x_dead_letter_routing_key=classic,
            )
            self._try(lambda ch: ch.queue_bind(dying, self._exchange, dying))
            self._try(lambda ch: ch.queue_purge(classic))
            self._try(lambda ch: self._published(ch, dying))
            dead = self._try(lambda ch: self._got(ch, classic))
        except AccessRefused:
            return
        if dead is None:
            yield Finding(Level.FAULT, "dead letters", "a message that expired did not arrive")
            return
        yield Finding(Level.OK, "dead letters", "arrive")
        deaths = (dead.headers or {}).get("x-death")
        when = deaths[0].get("time") if deaths else None
        if isinstance(when, datetime):
            stamped = when if when.tzinfo else when.replace(tzinfo=timezone.utc)
            yield diagnosis.clock_skew(stamped.timestamp() - self._clock.wall())

    def _got(self, channel: Any, queue: str) -> Any:
        deadline = self._clock.monotonic() + ANSWER_S / 2
        while remaining(self._clock, deadline):
            message = channel.basic_get(queue, no_ack=True)
            if message is not None:
                return message
            self._clock.sleep(0.02)
        return None

    def _default_type(self) -> Iterator[Finding]:
        """Declared without a type, it has the default one; then only the same type fits."""
        try:
            name = self._declare("untyped", x_expires=EXPIRES_MS)
        except AccessRefused:
            return
        for kind in ("classic", "quorum"):
            table = {"x-expires": EXPIRES_MS, "x-queue-type": kind}
            declare = operator.methodcaller(
                "queue_declare", name, durable=True, auto_delete=False, arguments=table
            )
            with contextlib.suppress(AMQPError):
                self._try(declare)
                text = f"{kind}; tq_broker always says which it wants"
                yield Finding(Level.NOTE, "default queue type", text)
                return

    def _namespace(self) -> Iterator[Finding]:
        name = self._names.namespace
        parked = self._ready(str(self._names.queue(Kind.PARKED)))
        if parked is None:
            yield Finding(Level.NOTE, "namespace", f"{name!r} has not been used on this broker yet")
            return
        unrouted = self._ready(str(self._names.queue(Kind.UNROUTED))) or 0
        yield Finding(Level.OK, "namespace", f"{name!r} is in use")
        if parked:
            text, advice = f"{parked} parked messages", "tq-broker parked list"
            yield Finding(Level.WARNING, "parked", text, advice)
        if unrouted:
            text = f"{unrouted} tasks wait for a worker to route them anew"
            yield Finding(Level.WARNING, "unrouted", text, "start a worker of this namespace")

    def _ready(self, queue: str) -> int | None:
        try:
            told = self._try(lambda ch: ch.queue_declare(queue, passive=True))
        except (AMQPError, AccessRefused):
            return None
        return int(told.message_count)


def _ours(error: BaseException) -> TqBrokerError:
    return translate(error) or Bug(f"{type(error).__name__}: {error}")
