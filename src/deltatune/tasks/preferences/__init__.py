"""Preferences: pairs of a chosen and a rejected answer to a prompt."""
