"""The document at `/openapi.json`, held against a running server by schemathesis."""
