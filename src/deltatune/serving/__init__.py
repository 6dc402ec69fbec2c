"""Serving: one base, any number of adapters, requests of many clients at once."""
