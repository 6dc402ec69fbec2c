"""Prompts: rows as text and as tokens for language models, and templates with soft prompts."""
