from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.exceptions import InvalidArgument
from tq_broker.queues.address import mask, parse_addresses


def test_what_is_not_said_is_rabbitmqs_default() -> None:
    (address,) = parse_addresses("amqp://")
    assert (address.host, address.port, address.vhost) == ("localhost", 5672, "/")
    assert (address.user, address.password, address.tls) == ("guest", "guest", None)


@pytest.mark.parametrize("path", ["", "/", "//", "/%2F", "/%2f"])
def test_the_default_vhost_can_be_written_in_many_ways(path: str) -> None:
    assert parse_addresses(f"amqp://host{path}")[0].vhost == "/"


@given(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1))
def test_any_login_and_vhost_can_be_written(user: str, password: str, vhost: str) -> None:
    try:
        parts = [quote(part, safe="") for part in (user, password, vhost)]
    except UnicodeEncodeError:
        return
    (address,) = parse_addresses("amqp://{}:{}@host:1/{}".format(*parts))
    assert (address.user, address.password, address.vhost) == (user, password, vhost)


def test_several_brokers_are_separated_by_semicolons() -> None:
    addresses = parse_addresses("amqp://a:1 ; amqps://[::1]/v;")
    assert [(a.host, a.port) for a in addresses] == [("a", 1), ("::1", 5671)]
    assert mask(addresses) == "amqp://guest@a:1/%2F;amqps://guest@[::1]:5671/v"


def test_a_password_is_never_shown() -> None:
    addresses = parse_addresses("amqp://me:s3cret@host/v")
    assert "s3cret" not in f"{mask(addresses)} {addresses!r} {addresses[0]}"


def test_tls_checks_the_certificate_and_the_host_name() -> None:
    tls = parse_addresses("amqps://host?cacertfile=/ca.pem&certfile=c&keyfile=k")[0].tls
    assert tls is not None
    assert (tls.verify, tls.server_name) == (True, "host")
    assert (tls.ca_file, tls.cert_file, tls.key_file) == ("/ca.pem", "c", "k")
    named = parse_addresses("amqps://10.0.0.1?server_name_indication=mq.example")[0].tls
    assert named is not None
    assert named.server_name == "mq.example"


def test_not_checking_takes_two_words() -> None:
    with pytest.raises(InvalidArgument, match="allow_insecure_tls=1"):
        parse_addresses("amqps://host?verify=none")
    tls = parse_addresses("amqps://host?verify=none&allow_insecure_tls=1")[0].tls
    assert tls is not None
    assert not tls.verify


@pytest.mark.parametrize(
    "url",
    [
        "",
        ";",
        "http://me:s3cret@host",
        "me:s3cret@host",
        "amqp://me:s3cret@host:port",
        "amqp://me:s3/cret@host",
        "amqp://me:s3#cret@host",
        "amqp://me:s3cret@host/a/b",
        "amqp://me:s3cret@host?verify=none",
        "amqps://me:s3cret@host?speed=high",
        "amqps://me:s3cret@host?verify=maybe",
        "amqp://me:s3cret@[host",
    ],
)
def test_what_is_no_url_is_refused_without_the_password(url: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse_addresses(url)
    assert "cret" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_a_url_must_be_text() -> None:
    with pytest.raises(InvalidArgument):
        parse_addresses(None)  # type: ignore[arg-type]
