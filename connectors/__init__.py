"""Debezium's connectors: one for each database with an outbox, registered here and watched here.

``debezium`` says what a connector is configured with and why; ``connect`` talks to Kafka Connect; ``slots`` looks
after replication slots in PostgreSQL; ``python -m connectors`` is the watcher that keeps it all running.
"""

from connectors.connect import Connect, ConnectRefused, ConnectUnavailable
from connectors.debezium import configuration, connector_name, heartbeat_topic
from connectors.slots import SlotConflict, ensure_slot, slot_state

__all__ = [
    "Connect",
    "ConnectRefused",
    "ConnectUnavailable",
    "SlotConflict",
    "configuration",
    "connector_name",
    "ensure_slot",
    "heartbeat_topic",
    "slot_state",
]
