"""`/docs` and `/openapi.json`, generated from the messages, parameters and settings."""
