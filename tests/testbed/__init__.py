"""The test bed: virtual machines of both ISAs, and what tests do with them. `scripts/testbed` makes it."""
