"""One module per library, each called as ``python -m benchmarks.peers.NAME OPERATION``.

The operations, of which a peer has those that it can do:

``publish``
    send ``count`` tasks, confirmed, as fast as one process can. Also fills the queue of ``drain``.
``drain``
    be the worker: execute ``count`` waiting no-op tasks, acknowledged after execution.
``results``
    be the client: send ``count`` tasks, say ``filled``, then read all results.
``work``
    be the worker of ``results`` and ``latency``, until ended.
``latency``
    be the client: ``count`` round trips, one after the other.

The settings at the top of each module are those that the library's documentation recommends for
throughput, with a prefetch of several hundred, so that no peer waits for the network.
"""
