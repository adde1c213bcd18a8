"""The command line: ``tq-broker``, for those who run workers and look after task queues.

`main` is the group and its exit codes; each group of commands has a module of its own. What the
global options say becomes a `session.Session`, which connects; `output` prints as a table, as
plain lines or as JSON. `supervisor` keeps the processes of ``tq-broker worker --processes``.
"""
