"""Figures of a REST process for Prometheus; each process adds its own to the registry."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

#: Upper bounds in seconds: creation takes milliseconds, a long poll up to a minute.
_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class RequestMetrics:
    """One registry for one application, so that two applications in one test process do not meet."""

    def __init__(self, prefix: str) -> None:
        """``prefix`` begins the name of every figure, as ``fluxora_coordinator``."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            f"{prefix}_requests_total",
            "Requests answered; status 499 = the client left first.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            f"{prefix}_request_seconds",
            "Time to answer; long polls are counted with the route they wait on.",
            ["method", "route"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.refused = Counter(
            f"{prefix}_refused_total",
            "Creations refused because of overload, by the limit that was reached.",
            ["limit"],
            registry=self.registry,
        )
        self.backlog = Gauge(
            f"{prefix}_backlog",
            "What was created and has not been dealt with, as last measured.",
            registry=self.registry,
        )
        # Looking a child up by its labels takes a lock and a sort each time.
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        key = (method if method.isalpha() and len(method) < 8 else "other", route, status)
        children = self._children.get(key)
        if children is None:
            children = (
                self._requests.labels(key[0], route, str(status)),
                self._seconds.labels(key[0], route),
            )
            if len(self._children) < 1000:  # a client can invent methods
                self._children[key] = children
        children[0].inc()
        children[1].observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
