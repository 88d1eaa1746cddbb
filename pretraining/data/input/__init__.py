"""Read documents from files of every supported format and compression, in slices that processes share."""
