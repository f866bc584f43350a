"""The command line: ``fluxora init``, ``fluxora service add``, ``fluxora saga list``."""
