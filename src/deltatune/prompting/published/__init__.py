"""Published prompts as data: templates and label words of papers, for data sets by their class names."""
