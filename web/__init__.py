"""What our REST processes share: problem documents, limits around every request, headers, the pool of connections
and how a process serves. Nothing in here knows a saga or a message.
"""
