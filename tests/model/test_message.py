"""Messages are values."""

from __future__ import annotations

import pytest

from tq_broker.model.message import Message, Publication


def test_a_message_is_persistent_json_unless_it_is_said_otherwise() -> None:
    message = Message(body=b"{}", message_id="1")
    assert message.persistent
    assert (message.content_type, message.content_encoding) == ("application/json", "utf-8")
    assert (message.priority, message.timestamp, message.reply_to) == (None, None, None)
    assert message.headers == {}


def test_messages_and_publications_are_values_that_do_not_change() -> None:
    message = Message(body=b"{}", message_id="1")
    publication = Publication("exchange", "key", message)
    assert publication == Publication("exchange", "key", Message(body=b"{}", message_id="1"))
    for value, field in ((message, "body"), (publication, "routing_key")):
        with pytest.raises(AttributeError):
            setattr(value, field, "other")


def test_a_message_takes_its_fields_by_name_only() -> None:
    with pytest.raises(TypeError):
        Message(b"{}", "1")  # type: ignore[misc]
