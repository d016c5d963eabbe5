"""Tests of hetcc: its parts on text, and whole pairs, run on both ISAs."""
