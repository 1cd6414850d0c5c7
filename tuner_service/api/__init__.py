"""The REST API: `create_app` makes the FastAPI application, `server.serve` runs it."""
