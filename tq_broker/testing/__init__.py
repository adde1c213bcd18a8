"""Testing: what a user's tests need: a clock that is told the time, a private RabbitMQ, and an
environment to call activities in.
"""

from tq_broker.testing.activity_environment import ActivityEnvironment
from tq_broker.testing.manual_clock import ManualClock

__all__ = ["ActivityEnvironment", "ManualClock"]
