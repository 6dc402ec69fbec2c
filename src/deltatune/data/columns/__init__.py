"""The columns of a source: their names, what they hold, which are text and label, and which task they are for."""
