"""Everything that is decided before the first process group: the RunConfig, the resume point, checks of the data."""
