"""Tests, a folder for each package; see README.md in this folder."""
