"""The local stack: PostgreSQL, Kafka, Connect with Debezium, a schema registry, and our services on top.

`python -m deploy up` (or `make up`) starts a supervisor that keeps every process running; see `deploy.stack`
for the same from Python, `deploy.settings` for what can be set.
"""
