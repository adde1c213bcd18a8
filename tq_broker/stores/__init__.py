"""Stores: where the history service keeps what must not be forgotten."""
