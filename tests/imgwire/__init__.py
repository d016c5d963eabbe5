"""Tests of the imgwire package."""
