"""What a results file holds: the kinds of rows and their fields, read, written and merged."""
