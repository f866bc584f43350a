"""Calls to HTTP services: where they are (directory), what may be called (addresses), one bounded attempt (attempt),
and the process that turns commands on Kafka into attempts and replies (relay)."""
