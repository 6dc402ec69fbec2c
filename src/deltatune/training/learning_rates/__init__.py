"""Learning rates: recommended ones, and the search of the best one by short runs."""
