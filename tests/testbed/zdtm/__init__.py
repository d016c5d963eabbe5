"""CRIU's own test suite, zdtm, in a guest, with our page server in place of CRIU's.

zdtm.py runs `criu page-server`, `criu pre-dump` or `criu dump --leave-running`, `criu dump` and `criu restore`. The
`criu` that it finds is criu.py, which has the pages go through `imgproxy --rounds` to an `imgcache`, and restores what
that makes of the rounds. `make` is a stand-in, too. The suite itself comes from scripts/zdtm.
"""
