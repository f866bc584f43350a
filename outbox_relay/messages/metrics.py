"""The Outbox Service's figures for Prometheus."""

from prometheus_client import Counter, Gauge, Histogram

from web.metrics import RequestMetrics

_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics(RequestMetrics):
    def __init__(self) -> None:
        super().__init__("fluxora_outbox")
        registry = self.registry
        self.accepted = Counter("fluxora_outbox_messages_accepted_total", "Messages accepted.", registry=registry)
        self.settled = Counter(
            "fluxora_outbox_claims_settled_total",
            "Claims by what became of them; LOST: the lease had ended and another has the message.",
            ["outcome"],
            registry=registry,
        )
        self.confirmed = Counter(
            "fluxora_outbox_messages_confirmed_total", "Messages seen in their topics.", registry=registry
        )
        self.letters = Counter("fluxora_outbox_dead_letters_total", "Dead letters produced.", registry=registry)
        self.attempt_seconds = Histogram(
            "fluxora_outbox_attempt_seconds", "HTTP attempts.", buckets=_BUCKETS, registry=registry
        )
        self.in_flight = Gauge("fluxora_outbox_attempts_in_flight", "HTTP attempts under way.", registry=registry)
        self.pending = Gauge(
            "fluxora_outbox_messages_pending",
            "PENDING messages by destination; the hundred destinations with the most.",
            ["destination"],
            registry=registry,
        )
        self.rules = Gauge("fluxora_outbox_rules", "Rules in force.", registry=registry)
        self.rules_broken = Gauge(
            "fluxora_outbox_rules_broken", "1 while the file of rules cannot be used.", registry=registry
        )
        self.pruned = Counter("fluxora_outbox_rows_pruned_total", "Rows deleted by age.", registry=registry)
        self.pool_waiting = Gauge(
            "fluxora_outbox_pool_waiting", "Requests that wait for a connection.", registry=registry
        )
