"""Combinations: gates, unions and the unified view."""
