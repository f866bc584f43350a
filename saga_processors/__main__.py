"""``python -m saga_processors``: one saga processor."""

import mode.loop

mode.loop.use("uvloop")  # before anything makes an event loop

from saga_processors.agent import SagaWorker  # noqa: E402
from saga_processors.settings import ProcessorSettings  # noqa: E402

if __name__ == "__main__":
    SagaWorker(ProcessorSettings()).main()
