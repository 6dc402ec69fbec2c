"""Published data sets: the shapes of their columns, the text form of WikiSQL's queries, and their own metrics."""
