"""Bytes and states, no I/O: what the messages look like and which are allowed when."""
