"""Values that travel or are remembered: names, messages, tasks, failures, records.

Everything here is pure: no I/O, no clock, no threads.
"""
