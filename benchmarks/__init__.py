"""Benchmarks: tq_broker and its peers, side by side on one broker.

``python -m benchmarks`` starts a private RabbitMQ, runs every row several times, the peers
interleaved, each measurement in fresh processes, and prints medians and ratios::

    python -m benchmarks --quick --only 'drain-*'

How it is put together: `catalogue` lists the rows, `process` runs one peer in a process of its
own, `measurement` says in which order the processes of one measurement come, `servers` provides
the broker and the result store, `inspection` looks at the broker, `report` makes the tables. Each
library is one module of `peers`, which talks to its library only, counts with `tally`, and answers
one `order` with one JSON line.

What is fair here: peers have the settings that their own documentation recommends for speed, with
a generous prefetch; messages are persistent, queues durable, publishes confirmed, acknowledgements
late. A row that tq_broker loses is shown like any other.
"""
