"""Images and sounds in files."""
