"""The commands of `imgproxy`, a module each; `imgproxy.cli` puts them together."""
