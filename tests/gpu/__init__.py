"""What only a GPU can show: `make test-gpu`.  Everywhere else these tests are skipped."""
