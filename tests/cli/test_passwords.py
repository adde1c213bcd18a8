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
        (["-b", OPEN, "doctor", "-b", SECRET], ["doctor"], SECRET),
        ([f"--broker={OPEN}", f"-b{OPEN}", "doctor", "-b", SECRET], ["doctor"], SECRET),
        (["-b", OPEN, "-b", SECRET, "-b", OPEN], ["-b", OPEN], None),
        (["doctor", "-b", SECRET, "-b"], ["doctor", "-b"], SECRET),
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
    assert without_password([*plain, "run", *arguments[1:3], "-b", OPEN]) == (
        ["history", "run", "-b", OPEN],
        {"TQ_BROKER_STORE": STORE},
    )
