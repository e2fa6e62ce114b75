"""What a run costs, from its config alone.  Imports no torch."""
