"""From a block back to the file and line of its text, and from a text to its blocks."""
