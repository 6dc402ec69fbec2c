"""Exports: adapters in the files that other programs serve, checked before and after they are written."""
