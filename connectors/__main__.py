"""``python -m connectors``: the watcher as a process."""

import signal
import sys
from types import FrameType

import structlog
from pydantic import ValidationError

from connectors.connect import Connect
from connectors.pruning import Pruning
from connectors.watcher import Watcher, WatcherSettings
from participant.health import HealthServer
from participant.logs import log_to_stderr
from participant.retention import RetentionSettings


def main() -> int:
    """Run until SIGTERM; 2 if a setting is missing or wrong."""
    log_to_stderr()
    try:
        settings, retention = WatcherSettings(), RetentionSettings()
    except ValidationError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    # One look must not take long: a Connect that is down is reported and looked at again.
    with Connect(settings.connect_url, patience_s=1) as connect:
        watcher = Watcher(connect, settings)
        pruning = Pruning(retention, settings.database_url, watcher.databases)

        def ask(number: int, frame: FrameType | None) -> None:
            watcher.stop()

        signal.signal(signal.SIGTERM, ask)
        signal.signal(signal.SIGINT, ask)
        health = None
        if settings.health_port:
            health = HealthServer(settings.health_port, watcher.live, watcher.ready, settings.health_host)
            health.start()
        structlog.get_logger(__name__).info("watcher_started", connect=settings.connect_url)
        pruning.start()
        watcher.run()
        pruning.stop()
        if health is not None:
            health.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
