"""Metrics of every task."""
