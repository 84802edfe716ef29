"""The HTTP front-end: the only place that knows FastAPI, Starlette and uvicorn."""
