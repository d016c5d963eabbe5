"""What scripts/bench runs: every comparison side by side, in turns, measured from outside by the process that moves."""
