"""How a run ends early: signals, a STOP file, a deadline, a hang, an orphaned process."""
