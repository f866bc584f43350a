"""``python -m fluxora``: the same as the command ``fluxora``."""

from fluxora.cli import main

if __name__ == "__main__":
    main()
