"""The REST side of the platform: starts sagas and tells how they stand. It never changes a state
(DESIGN section 1).

Reading order: ``sagas`` (the routes), ``submission`` (from a body to a record that keeps every rule),
``creation`` and ``creation_store`` (one statement makes them), ``requests`` (asking the machine for something),
``waiting`` (one LISTEN wakes all who wait), ``app`` (the wiring).
"""
