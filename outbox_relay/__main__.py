"""``python -m outbox_relay``: one HTTP relay."""

import os
import sys

import structlog
import uvloop

from outbox_relay.relay import Relay
from outbox_relay.settings import RelaySettings
from participant.logs import log_to_stderr

_EX_TEMPFAIL = 75


async def _run(settings: RelaySettings) -> None:
    status = 0
    try:
        await Relay(settings).run()
    except Exception as error:
        structlog.get_logger().critical("relay ends; it will be started again", error=repr(error), exc_info=True)
        status = _EX_TEMPFAIL
    sys.stderr.flush()
    # Without waiting for threads: a look-up at a name server that hangs has one, and cannot be ended.
    os._exit(status)


if __name__ == "__main__":
    log_to_stderr()
    uvloop.run(_run(RelaySettings.from_environment()))
