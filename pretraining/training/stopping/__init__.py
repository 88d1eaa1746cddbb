"""Ending a run early: signals, a STOP file, a deadline, hangs, orphaned processes."""
