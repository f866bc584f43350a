"""Benchmarks of the whole product on one machine. They are started, not imported: `make bench`, `make bench-peers`."""
