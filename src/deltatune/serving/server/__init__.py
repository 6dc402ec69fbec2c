"""The HTTP server of adapters."""
