"""uvicorn's WebSocket protocol, with reading paused only when messages pile up."""

from __future__ import annotations

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

MAX_QUEUED = 64  # messages read but not taken yet, from which on a peer has to wait


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """Like uvicorn's, which pauses and resumes the transport around every single message: 5 µs each."""

    def send_receive_event_to_app(self) -> None:
        """Queue a whole message for the endpoint."""
        data = self.frames[0] if len(self.frames) == 1 else b"".join(self.frames)
        self.frames = []
        if self.close_sent:
            return  # the endpoint is gone; reading goes on for the peer's close
        if self.curr_msg_data_type == "bytes":
            self.queue.put_nowait({"type": "websocket.receive", "bytes": data})
        else:
            try:
                self.queue.put_nowait({"type": "websocket.receive", "text": data.decode()})
            except UnicodeDecodeError:  # the peer's mistake; uvicorn would log a traceback of it
                self.conn.send_close(1007)
                self.handle_parser_exception()
                return
        if self.queue.qsize() >= MAX_QUEUED and not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()
