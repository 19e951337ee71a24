"""Messages on the network: bytes of a connection, JSON, the binary chunk, bodies of REST answers."""
