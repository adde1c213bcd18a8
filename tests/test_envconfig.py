from __future__ import annotations

from pathlib import Path

import pytest

from tq_broker.envconfig import ClientConfig, ClientConfigProfile, default_config_file
from tq_broker.exceptions import InvalidArgument

FILE = """
[profile.default]
url = "amqp://app:secret@one/orders"
namespace = "orders"

[profile.staging]
url = "amqp://two"
queue_type = "classic"
timeout = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(FILE)
    return path


def load(file: Path | None = None, profile: str | None = None, **env: str) -> object:
    variables = {f"TQ_BROKER_{name}": value for name, value in env.items()}
    return ClientConfig.load_client_connect_config(profile, file, override_env_vars=variables)


def test_the_default_profile_is_taken(file: Path) -> None:
    assert load(file) == {"url": "amqp://app:secret@one/orders", "namespace": "orders"}


def test_a_profile_is_named_by_the_argument_or_by_the_environment(file: Path) -> None:
    staging = {"url": "amqp://two", "queue_type": "classic", "timeout": 3}
    assert load(file, "staging") == staging
    assert load(file, PROFILE="staging") == staging
    assert load(CONFIG_FILE=str(file), PROFILE="staging") == staging


def test_the_environment_wins_over_the_file(file: Path) -> None:
    config = load(file, URL="amqp://three", TIMEOUT="1.5", IDENTITY="me", NAMESPACE="")
    assert config == {
        "url": "amqp://three",
        "namespace": "orders",
        "identity": "me",
        "timeout": 1.5,
    }


def test_what_is_disabled_is_not_looked_at(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TQ_BROKER_URL", "amqp://env")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    load_config = ClientConfig.load_client_connect_config
    assert load_config(config_file=file, disable_env=True)["url"].endswith("one/orders")
    assert load_config(config_file=file, disable_file=True) == {"url": "amqp://env"}
    assert load_config(disable_file=True, disable_env=True) == {}
    with pytest.raises(InvalidArgument, match="needs the file"):
        load_config("staging", disable_file=True)


def test_a_default_file_that_is_not_there_is_no_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert default_config_file() == tmp_path / "tq_broker" / "tq_broker.toml"
    assert load() == {}
    with pytest.raises(InvalidArgument, match=r"no profile 'x'.*there is no file.*none"):
        load(profile="x")


@pytest.mark.parametrize("error", [NotADirectoryError, PermissionError])
def test_a_home_that_is_none_has_no_file(
    monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    """Found: no command worked for service users, whose home is /dev/null or that of root."""

    def stat(*_: object, **__: object) -> None:
        raise error("no way there")

    with monkeypatch.context() as patch:
        patch.setattr("os.stat", stat)
        assert load() == {}
        with pytest.raises(InvalidArgument, match=r"x\.toml cannot be read: no way there"):
            load(Path("x.toml"))


def test_a_default_file_that_may_not_be_read_is_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_bytes(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    default_config_file().parent.mkdir()
    default_config_file().write_text(FILE)
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(InvalidArgument, match="cannot be read: "):
        load()


def test_the_default_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    default_config_file().parent.mkdir()
    default_config_file().write_text(FILE)
    assert load(profile="staging") == {"url": "amqp://two", "queue_type": "classic", "timeout": 3}


def test_it_stands_in_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert default_config_file() == tmp_path / ".config/tq_broker/tq_broker.toml"
    monkeypatch.setattr("sys.platform", "darwin")
    assert "Application Support" in str(default_config_file())


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[profile.default]\nurll = 'x'", r"unknown key 'urll', did you mean 'url'\?; known"),
        ("[profiles.default]", r"unknown key 'profiles', did you mean 'profile'"),
        ("profile = 3", "must be a table"),
        ("[profile]\ndefault = 3", r"profile.default must be a table"),
        ("[profile.default]\nurl = 3", r"\[profile.default\]: url must be a non-empty string"),
        ("[profile.default]\ntimeout = 0", "timeout must be a positive number"),
        ("[profile.default]\ntimeout = true", "timeout must be a positive number"),
        ("url = ", "is not TOML"),
    ],
)
def test_what_is_wrong_in_the_file_is_said(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(InvalidArgument, match=match) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_a_file_that_was_named_must_be_there_and_readable(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="there is no configuration file"):
        load(tmp_path / "none.toml")
    with pytest.raises(InvalidArgument, match="cannot be read"):
        load(tmp_path)
    (tmp_path / "latin").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidArgument, match="cannot be read"):
        load(tmp_path / "latin")
    (tmp_path / "huge").write_bytes(b"#" * 1_000_001)
    with pytest.raises(InvalidArgument, match="over the bound"):
        load(tmp_path / "huge")


def test_an_unknown_profile_is_answered_with_the_known_ones(file: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"did you mean 'staging'\?; profiles: default"):
        load(file, "stagin")


def test_a_timeout_must_be_a_number() -> None:
    with pytest.raises(InvalidArgument, match="TQ_BROKER_TIMEOUT must be a number"):
        load(TIMEOUT="soon", CONFIG_FILE="")


def test_a_password_is_in_no_repr(file: Path) -> None:
    config = ClientConfig.load(config_file=file)
    assert "secret" not in repr(config)
    assert "secret" not in repr(config.profile())


def test_a_configuration_survives_a_round_trip(file: Path) -> None:
    config = ClientConfig.load(config_file=file)
    assert ClientConfig.from_dict(config.to_dict()).profiles == config.profiles
    profile = ClientConfigProfile.load("staging", config_file=file, override_env_vars={})
    assert ClientConfigProfile.from_dict(profile.to_dict()) == profile
