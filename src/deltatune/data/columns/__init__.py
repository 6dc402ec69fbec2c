"""Which columns there are, what they hold, and which task they are for."""
