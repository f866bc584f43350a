"""``make torture``: the real stack under load while everything dies, and a judge of what clients saw (docs/torture.md).

=================  ==================================================================================================
module             what
=================  ==================================================================================================
``history``        what clients wanted, asked and saw, and which faults struck when; JSON lines
``world``          what databases, REST and topics hold when all is over
``checker``        judges the two; with ``rules``, ``effects``, ``deliveries``. Pure
``faults``         the literal table of faults; ``schedule``: which strikes when, by a seed. Pure
``clients``        the load; ``shop`` and ``listener`` are services of its own, beside those of tests/services
``strikes``        injects a fault
``observation``    reads the world
``report``         says what is wrong, and what to do next
``run``            all of it in order
=================  ==================================================================================================
"""
