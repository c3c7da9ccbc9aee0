"""Other people's checkpoints, as ours, and ours as theirs."""
