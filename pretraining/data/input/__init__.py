"""Files of every format and compression become documents, in slices that several processes share."""
