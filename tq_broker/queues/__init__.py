"""RabbitMQ and its twin in this process.

`broker` is the port: what every role may ask of a message broker, in prose. Two adapters keep
it: `amqp` (RabbitMQ, over Kombu and pika) and `memory` (embedded). The brains beside them,
`topology`, `routing`, `delay`, `confirms` and `acks`, are pure.
"""
