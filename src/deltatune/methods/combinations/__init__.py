"""Gates, unions and the unified view."""
