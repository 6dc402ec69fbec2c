"""Figures of reports as SVG: axes and marks, plots of a comparison, of a study and of an adapter's changes."""
