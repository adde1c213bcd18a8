"""Testing: what a user's tests need: a clock that is told the time, a private RabbitMQ."""
