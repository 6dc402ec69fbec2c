"""PET and iPET: an ensemble over templates labels further rows, from which a classifier with a new head learns."""
