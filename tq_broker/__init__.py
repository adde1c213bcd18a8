"""Temporal-style task queues for the RabbitMQ you already run."""
