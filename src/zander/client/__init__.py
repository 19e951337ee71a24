"""`Relay` and `Consumer`: the two ends of the protocol, for asyncio programs.

    async with Relay("ws://127.0.0.1:8000", "me", {"sampling_rate": 128, "channel_count": 1}) as relay:
        await relay.send_sample([12.5])

    async for event in Consumer("ws://127.0.0.1:8000", "me"):
        print(event)

Both connect again by themselves after a lost connection, with growing pauses, and go on where they were: a relay sends
again what the server has not stored, a consumer asks for what it missed. When the server refuses them for good, they
raise `Rejected`. Keys are sent in the `Authorization` header, never in the URL.
"""

from __future__ import annotations

from zander.client.connection import ConnectionLost, Rejected
from zander.client.consumer import Consumer, Cursor, Raw
from zander.client.relay import Relay
from zander.client.spool import SpoolError

__all__ = ["ConnectionLost", "Consumer", "Cursor", "Raw", "Rejected", "Relay", "SpoolError"]
