"""`python -m dbcache_export`."""

from dbcache_export.cli import main

main()
