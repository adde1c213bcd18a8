"""Testing: what a user's tests need: clocks that are told the time, a private RabbitMQ, and
environments to call activities and to run workflows in.
"""

from tq_broker.testing.activity_environment import ActivityEnvironment
from tq_broker.testing.manual_clock import ManualClock
from tq_broker.testing.workflow_environment import WorkflowEnvironment

__all__ = ["ActivityEnvironment", "ManualClock", "WorkflowEnvironment"]
