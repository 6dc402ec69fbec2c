"""Methods that scale or move representations directly."""
