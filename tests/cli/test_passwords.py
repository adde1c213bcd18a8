import pytest

from tq_broker.cli.passwords import without_password

SECRET = "amqp://user:pa:ss@host/vhost"
OPEN = "amqp://user@host/vhost"


STORE = "postgresql+psycopg://user:secret@host/db"


@pytest.mark.parametrize(
    ("arguments", "kept", "url"),
    [
        (["doctor", "-b", SECRET], ["doctor"], SECRET),
        (["--broker", SECRET, "doctor"], ["doctor"], SECRET),
        ([f"--broker={SECRET}", "doctor"], ["doctor"], SECRET),
        ([f"-b{SECRET}", "doctor"], ["doctor"], SECRET),
        (["-b", OPEN, "doctor"], ["-b", OPEN, "doctor"], None),
        ([f"--broker={OPEN}"], [f"--broker={OPEN}"], None),
        (["-b", SECRET, "doctor", "-b", OPEN], ["doctor", "-b", OPEN], None),
        (["-b", f"{OPEN};{SECRET}"], [], f"{OPEN};{SECRET}"),
        (["doctor", "-b"], ["doctor", "-b"], None),
        (["activity", "start", "-t", "x"], ["activity", "start", "-t", "x"], None),
        ([], [], None),
    ],
)
def test_a_password_is_taken_out(arguments: list[str], kept: list[str], url: "str | None") -> None:
    assert without_password(arguments) == (kept, {"TQ_BROKER_URL": url} if url else {})


def test_so_is_that_of_a_store() -> None:
    arguments = ["history", "--store", STORE, f"--broker={SECRET}"]
    hidden = {"TQ_BROKER_STORE": STORE, "TQ_BROKER_URL": SECRET}
    assert without_password(arguments) == (["history"], hidden)
    plain = ["history", "--store=sqlite:///x"]
    assert without_password([*plain]) == (plain, {})
