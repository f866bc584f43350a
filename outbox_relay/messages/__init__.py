"""The Outbox Service: messages that are accepted once and delivered at least once (contract, section 3).

Reading order: ``routes`` (REST), ``store`` (all SQL: what is in order, who may attempt what), ``delivery`` (attempts
over HTTP), ``confirmation`` (what Kafka has delivered), ``letters`` (dead letters), ``rules`` (routing and filters),
``app`` (the wiring).

A **lane** is what stays in order: the messages of one destination and one key. A message without a key is a lane of
its own. In a lane only the head has a time at which it is ``due``; whoever ends the head makes the next one due.
"""
