"""Classification through the model's own head: a template with a blank, and words for each class."""
