"""The coordinator's figures for Prometheus."""

from prometheus_client import Counter, Gauge

from web.metrics import RequestMetrics


class Metrics(RequestMetrics):
    def __init__(self) -> None:
        super().__init__("fluxora_coordinator")
        self.created = Counter("fluxora_coordinator_sagas_created_total", "Sagas created.", registry=self.registry)
        self.transactions_created = Counter(
            "fluxora_coordinator_transactions_created_total", "Two-phase commits created.", registry=self.registry
        )
        self.waiters = Gauge("fluxora_coordinator_waiters", "Requests in ?wait= now.", registry=self.registry)
        self.listening = Gauge(
            "fluxora_coordinator_listening",
            "1 while the connection that wakes waiters is up.",
            registry=self.registry,
        )
        self.services = Gauge("fluxora_coordinator_services", "Kafka services known.", registry=self.registry)
        self.pool_waiting = Gauge(
            "fluxora_coordinator_pool_waiting", "Requests that wait for a connection.", registry=self.registry
        )
