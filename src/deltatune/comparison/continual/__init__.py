"""Continual learning: tasks learned one after another, and what each way of learning them forgets."""
