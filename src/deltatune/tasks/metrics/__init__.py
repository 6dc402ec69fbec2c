"""Metrics of every task, and their direction and range."""
