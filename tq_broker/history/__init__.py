"""The service that remembers: histories of workflow runs, timers, retries, what comes next.

The machine (`tq_broker.history.machine`) is pure: it takes the state of a run, a message and the
time, and answers with events and effects. The rest acts.
"""
