"""Runs that are only estimated or tried: the plan, its measurement, the search for a micro batch."""
