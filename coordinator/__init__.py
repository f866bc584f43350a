"""The REST side of the platform: starts sagas and tells how they stand. It never changes a state
(DESIGN section 1).

Reading order: ``sagas`` (the routes), ``submission`` (from a body to a record that keeps every rule),
``creation`` and ``store`` (one statement makes sagas), ``waiting`` (one LISTEN wakes all who wait), ``app``
(the wiring).
"""
