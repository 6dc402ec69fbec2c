"""Endpoints that generate text: a local model or a server."""
