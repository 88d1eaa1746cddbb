"""report.html: one page about a run, with charts, that needs no network."""
