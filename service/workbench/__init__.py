"""Offline tools behind the command line; never imported by the server."""
