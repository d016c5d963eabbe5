"""Tests of the criu-image-streamer command."""
