"""The API reference, generated from the routes and the Structs: `/docs`, `/openapi.json` and `protocol.md`."""
