"""A writer of Parquet for tables of numbers and lists of numbers without nulls, directly from their bytes in memory."""
