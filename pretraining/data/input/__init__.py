"""Read documents from files of every supported format, compression and tool, in slices that processes share."""
