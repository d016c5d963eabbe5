"""README and docs are tested: what they show is run, what they name exists."""
