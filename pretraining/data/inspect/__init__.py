"""From a block to file and line of its text, and from a text to its blocks."""
